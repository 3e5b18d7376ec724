"""Let the exported model speak, listen and answer. Nothing but the export is used.

Without text= or input=: samples for the report in ${exp_dir}/generate/, from sentences and clips of the data:

    NNN_speak.wav   text -> speech             NNN_transcribe.json   speech -> text
    NNN_reply.wav   speech -> spoken reply, text and audio in turn until both end
    samples.json    all of them; beside every wav a json of the same name with text, events and prompt

With text="...", input=FILE.wav or turns=[FILE.wav,...] the answers go to ${exp_dir}/own/. The same seed= gives the same
answers.

    omniaudio generate system=NAME scale=mini text="please hold the line" seed=7
    omniaudio generate system=NAME scale=mini input=question.wav sampling.text.temperature=0 sampling.audio.top_k=10
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniaudio.cli.export import made_by
from omniaudio.errors import UserError, check_choice
from omniaudio.stage import stage

if TYPE_CHECKING:
    import numpy as np

    from omniaudio.dialogue.evaluation import Clip
    from omniaudio.dialogue.model import DialogueSettings, SpokenLanguageModel
    from omniaudio.dialogue.replies import SpokenReply
    from omniaudio.sequence.chat import Message

SAMPLES = "samples.json"


def main(config: dict[str, Any]) -> None:
    """Samples for the report, or answers to a user's own text and recording."""
    if config["text"] is not None or config["input"] is not None or config["turns"]:
        own(config)
        return
    with stage(
        Path(config["exp_dir"]) / "generate", config=config, inputs=[made_by(Path(config["model_dir"]))]
    ) as run:
        if run.done:
            return
        from omniaudio.files import write_whole

        samples = generate_samples(config, load(config), run.folder)
        write_whole(run.folder / SAMPLES, json.dumps(samples, indent=1, ensure_ascii=False))
        for sample in samples:
            run.log(told(sample))
        spoken = [sample["seconds"] for sample in samples if sample.get("wav")]
        run.metrics(
            {
                "seconds": round(run.seconds, 1),
                "samples": len(samples),
                "spoken": len(spoken),
                "speech_seconds": round(sum(spoken), 2),
            }
        )


def own(config: dict[str, Any]) -> None:
    """Answer ``text``, ``input`` and ``turns``."""
    from omniaudio.dialogue.model import HISTORIES

    language = config["language"]  # recordings are read before the model: a bad file is told at once
    if not isinstance(config["turns"], list):
        raise UserError(f"config turns: {config['turns']!r} must be a list: turns=[first.wav,second.wav]")
    check_choice("config history", config["history"], HISTORIES)
    clip = read_clip(config["input"], language) if config["input"] is not None else None
    turns = [read_clip(path, language, f"turn{i}_") for i, path in enumerate(config["turns"], 1)]
    if config["text"] is not None and not str(config["text"]).strip():
        raise UserError("config text: it is empty; give some words to read aloud")
    maker = SampleMaker(config, load(config), Path(config["own_dir"]))
    if config["text"] is not None:
        maker.speak(str(config["text"]), "yours")
    if clip is not None:
        maker.transcribe(clip, "yours")
        maker.replies(clip, "yours")
    maker.converse(turns, "yours")
    for sample in maker.samples:
        print(told(sample), f"-> {maker.folder / sample['json']}")


def read_clip(path: str, language: str, prefix: str = "") -> Clip:
    """A user's own recording; ``prefix`` begins its name."""
    from omniaudio.dialogue.evaluation import Clip
    from omniaudio.frontend.audio import decode_audio, read_audio

    wav_N, rate_hz = read_audio(path), decode_audio(path)[1]
    return Clip(
        key=f"{prefix}{Path(path).stem}",
        wav_N=wav_N,
        sample_rate_hz=rate_hz,
        text="",
        language=language,
        band_hz=rate_hz / 2,
    )


def generate_samples(
    config: dict[str, Any], model: SpokenLanguageModel, folder: Path
) -> list[dict[str, Any]]:
    """All samples of the report."""
    from omniaudio.dialogue.evaluation import choose_clips
    from omniaudio.progress import track

    shards, words = config["shards_dir"], (config["min_words"], config["max_words"])
    seen = choose_clips(shards, "train", config["num_seen"], *words) if config["num_seen"] else []
    unseen = choose_clips(shards, "test", max(config["num_unseen"], config["num_clips"], 1), *words)
    maker = SampleMaker(config, model, folder)
    jobs: list[Any] = [(maker.speak, clip.text, "training") for clip in seen]
    jobs += [(maker.speak, clip.text, "held out") for clip in unseen[: config["num_unseen"]]]
    jobs += [(maker.speak, text, "held out") for text in config["sentences"]]
    jobs += [(maker.transcribe, clip, "held out") for clip in unseen[: config["num_clips"]]]
    jobs += [(maker.replies, clip, "held out") for clip in unseen[: config["num_clips"]]]
    for make, what, source in track(jobs, "samples"):
        make(what, source)
    return maker.samples


class SampleMaker:
    """Makes samples one after the other and writes each.

    Args:
        config: of the verb.
        model: the export.
        folder: to write to.
    """

    def __init__(self, config: dict[str, Any], model: SpokenLanguageModel, folder: Path) -> None:
        self.config, self.model, self.folder = config, model, folder
        self.samples: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def speak(self, text: str, source: str) -> None:
        """Text to speech."""
        reply = self.model.speak(text, *(self.config[name] for name in ("seed", "voice", "language")))
        self._keep("speak", source, {"prompt_text": text}, reply)

    def transcribe(self, clip: Clip, source: str) -> None:
        """Speech to text."""
        text = self.model.transcribe(clip.wav_N, clip.sample_rate_hz, clip.language)
        self._keep("transcribe", source, self._prompt(clip), {"text": text})

    def replies(self, clip: Clip, source: str) -> None:
        """Speech to spoken replies, one for each thing that is asked."""
        asks, recording = self.config["asks"], (clip.wav_N, clip.sample_rate_hz)
        chats = [[self.model.question(*recording, task, clip.language)] for task in asks]
        seeds, voice = [self.config["seed"]] * len(asks), self.config["voice"]
        replies = self.model.replies(chats, seeds=seeds, voice=voice)
        for task, reply in zip(asks, replies, strict=True):
            self._keep("reply", source, {**self._prompt(clip), "ask": task}, reply)

    def converse(self, turns: Sequence[Clip], source: str) -> None:
        """A chat: what the user says, turn by turn, with a spoken reply to each."""
        from omniaudio.dialogue.replies import message_of

        messages: list[Message] = []
        for clip in turns:
            messages.append(self.model.question(clip.wav_N, clip.sample_rate_hz, None))
            if self.config["history"] == "text":
                messages = self.model.with_texts(messages)
            options = {name: self.config[name] for name in ("seed", "history", "voice")}
            reply = self.model.reply(messages, **options)
            messages.append(message_of(reply))
            self._keep("reply", source, self._prompt(clip), reply)

    def _prompt(self, clip: Clip) -> dict[str, Any]:
        """The recording that was heard, written once."""
        from omniaudio.frontend.audio import write_wav

        name = f"prompt_{clip.name}.wav"
        if not (self.folder / name).exists():
            write_wav(self.folder / name, clip.wav_N, clip.sample_rate_hz)
        return {"prompt_wav": name, "prompt_text": clip.text, "language": clip.language}

    def _keep(
        self, kind: str, source: str, prompt: dict[str, Any], reply: SpokenReply | dict[str, Any]
    ) -> None:
        from omniaudio.frontend.audio import write_wav

        name = f"{len(self.samples):03d}_{kind}"
        said: dict[str, Any] = {key: value for key, value in reply.items() if key != "wav"}
        wav_N: np.ndarray | None = reply.get("wav")
        said["wav"] = None
        if wav_N is not None:
            said["wav"] = f"{name}.wav"
            said["seconds"] = round(len(wav_N) / self.model.sample_rate_hz, 3)
            write_wav(self.folder / f"{name}.wav", wav_N, self.model.sample_rate_hz)
        sample = {
            "kind": kind,
            "source": source,
            "seed": self.config["seed"],
            **prompt,
            "json": f"{name}.json",
            **said,
        }
        (self.folder / f"{name}.json").write_text(json.dumps(sample, indent=1, ensure_ascii=False), "utf-8")
        self.samples.append({key: value for key, value in sample.items() if key != "events"} | _brief(sample))


def load(config: dict[str, Any]) -> SpokenLanguageModel:
    """The export, with the threads and the sampling of the config."""
    import omniaudio
    from omniaudio.cli.train import set_threads

    set_threads(config["num_threads"])
    model = omniaudio.load(config["model_dir"], config["device"])
    model.settings = with_sampling(model.settings, config["sampling"])
    return model


def with_sampling(
    settings: DialogueSettings, sampling: Mapping[str, Mapping[str, float | None] | None]
) -> DialogueSettings:
    """Settings with another sampling of ``text`` and ``audio``; what is None stays.

    Raises:
        UserError: a value that is not allowed.
    """
    changed = {}
    for kind, values in sampling.items():
        given: dict[str, Any] = {name: value for name, value in (values or {}).items() if value is not None}
        try:
            changed[kind] = dataclasses.replace(getattr(settings, kind), **given)
        except UserError as error:
            raise UserError(f"config sampling.{kind}.{error}") from error
    return dataclasses.replace(settings, **changed)


def told(sample: dict[str, Any]) -> str:
    """One line for the screen."""
    prompt = _short(sample["prompt_text"]) if sample.get("prompt_text") else sample.get("prompt_wav", "")
    said = f"said {sample['seconds']:.1f} s" if sample.get("wav") else ""
    wrote = f"wrote {_short(sample['text'])}" if sample["text"] else ""
    answer = ", ".join(filter(None, (wrote, said))) or "said nothing"
    asked = f", asked to {sample['ask']}" if sample.get("ask") else ""
    if sample.get("saved_positions"):
        asked += f", {sample['prompt_positions']} positions read, {sample['saved_positions']} saved"
    return f"{sample['kind']} ({sample['source']}{asked}) {prompt}: {answer}"


def _short(text: str, most: int = 70) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")


def _brief(sample: dict[str, Any]) -> dict[str, Any]:
    """Events without their codes, for the page."""
    events = sample.get("events", [])
    return {"events": [{k: v for k, v in event.items() if k != "codes"} for event in events]}
