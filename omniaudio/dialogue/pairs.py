"""Preference pairs of a model's own replies: several to a prompt, spoken, heard by a recogniser; best and worst.

The reward of a reply is minus the error rate of what is heard, at most 1: against the reply's own text (does it say
what it writes?), against the known answer (does it say what it should?), or the mean of both. Of a reply without speech
nothing is heard. Own texts alone reward whatever is said clearly, an answer of one word too: watch the replies, or take
both.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.corpus.build.pipeline import DONE, Job, make_jobs
from omniaudio.data.compose import DocumentComposer
from omniaudio.data.mixture import seed_of
from omniaudio.data.pairs import Pair, write_pair
from omniaudio.data.shards import ShardReader, ShardWriter
from omniaudio.dialogue.folder import layout_of, read_model
from omniaudio.dialogue.model import SpokenLanguageModel, SpokenReply
from omniaudio.errors import UserError, check_choice
from omniaudio.files import write_whole
from omniaudio.fingerprint import Fingerprint, check_fingerprints
from omniaudio.frontend.text import UNSPACED_LANGUAGES, normalise_text
from omniaudio.metrics.cer import character_error_rate, word_error_rate
from omniaudio.sequence.chat import Message, Segment, segments_of

OWN, ANSWER = "own", "answer"
"""What is heard is compared with the reply's own text, or with the known answer."""
KINDS = ("sft_repeat", "sft_continue", "sft_chat")
"""Chats whose replies are spoken."""
UNITS = {"word": word_error_rate, "character": character_error_rate}
HEARD_SEC = 30.0
"""Longest speech that a judge hears."""


def jobs_of(num_prompts: Mapping[str, int], kinds: Sequence[str], prompts_per_job: int) -> list[Job]:
    """Jobs of so many prompts each, of one split each.

    Args:
        num_prompts: by split, of each kind.
        kinds: of ``KINDS``.
    """
    if not kinds or (wrong := sorted(set(kinds) - set(KINDS))):
        raise UserError(f"config kinds: {wrong[0] if kinds else []!r}: give some of {', '.join(KINDS)}")
    parts = [
        job.sources
        for split, number in num_prompts.items()
        for job in make_jobs(
            ({"split": split, "kind": kind, "place": i} for kind in kinds for i in range(number)),
            prompts_per_job,
        )
    ]
    return [Job(number, sources) for number, sources in enumerate(parts)]


class PairMaker:
    """What an executor builds once in every process: replies to prompts, and the pairs among them.

    Args:
        model: exported folder.
        judge: Whisper by hub name or folder.
        codes_dir: code shards whose clips and chats the prompts are made of.
        num_replies: to each prompt, each from a seed of its own.
        against: ``own``, ``answer``, or both.
        unit: ``word`` or ``character``, of which errors are counted; replies with hardly a word right differ by
            characters alone.
        margin: least difference of the rewards of a pair.
        seed: of prompts and replies.
        judge_dtype: see AsrJudge.
        device: of model and judge.
        num_threads: of torch; null takes what the executor gives.
    """

    def __init__(
        self,
        model: str,
        judge: str,
        codes_dir: str,
        num_replies: int,
        against: Sequence[str],
        unit: str,
        margin: float,
        seed: int,
        judge_dtype: str = "fp32",
        device: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        if num_replies < 2:
            raise UserError(f"config num_replies: {num_replies} must be at least 2: a pair is two replies")
        if not against or set(against) - {OWN, ANSWER}:
            raise UserError(f"config against: {list(against)} must name {OWN}, {ANSWER}, or both")
        check_choice("config unit", unit, tuple(UNITS))
        if margin <= 0:
            raise UserError(f"config margin: {margin} must be > 0")
        self.folder, self.judge, self.codes_dir, self.unit = model, judge, codes_dir, unit
        self.num_replies, self.against, self.margin, self.seed = num_replies, tuple(against), margin, seed
        self.judge_dtype, self.device, self.num_threads = judge_dtype, device, num_threads
        self._parts: tuple[SpokenLanguageModel, Any] | None = None
        self._layout: Fingerprint = {}
        self._composers: dict[str, DocumentComposer] = {}
        self._groups: dict[tuple[str, str], tuple[list[tuple[int, ...]], Iterator[int]]] = {}

    def run(self, job: Job, folder: Path) -> None:
        """Do a job, unless it is done; what a broken-off try left is removed."""
        home = job.begun(folder)
        if home is None:
            return
        self._loaded()
        told: defaultdict[str, float] = defaultdict(int)
        with ShardWriter(home, job.sources[0]["split"], fingerprint=self._layout) as writer:
            for source in job.sources:
                pair = self.pair(source["split"], source["kind"], source["place"], told)
                if pair is not None:
                    write_pair(writer, pair)
                    told["pairs"] += 1
        write_whole(home / DONE, json.dumps(told, sort_keys=True))

    def pair(self, split: str, kind: str, place: int, told: defaultdict[str, float]) -> Pair | None:
        """The pair of a prompt, if its replies differ enough; what became of them is counted in ``told``."""
        items = self._items(split, kind, place)
        if items is None:
            return None
        told["prompts"] += 1
        key, composer = f"{split}/{kind}/{place:06d}", self._composers[split]
        *prompt, last = composer.messages(kind, items, seed_of(self.seed, key, 0, "prompt"))
        language = composer.reader.entries[items[0]].facts["language"]
        answer = "".join(part for part in segments_of(last["content"]) if isinstance(part, str)).strip()
        if ANSWER in self.against and not normalise_text(answer, language):
            told["no pair: no known answer"] += 1
            return None
        replies = self._replies(prompt, key, language, told)
        rewards, heard = self._rewards(replies, answer, language)
        told["reward"] += sum(rewards)
        if len(replies) < 2:
            told["no pair: fewer than two replies to compare"] += 1
            return None
        best, worst = int(np.argmax(rewards)), int(np.argmin(rewards))
        if rewards[best] - rewards[worst] < self.margin:
            told["no pair: the replies are heard equally well"] += 1
            return None
        facts: dict[str, Any] = {
            "answer": answer,
            "prompt_of": [composer.reader.entries[i].key for i in items],
        }
        for name, i in (("chosen", best), ("rejected", worst)):
            facts |= {f"{name}_reward": round(rewards[i], 4), f"{name}_heard": heard[i]}
        chosen, rejected = (parts_of(replies[i]) for i in (best, worst))
        return Pair(key=key, language=language, prompt=prompt, chosen=chosen, rejected=rejected, facts=facts)

    def _replies(
        self, prompt: list[Message], key: str, language: str, told: defaultdict[str, float]
    ) -> list[SpokenReply]:
        """Replies that can be compared."""
        model, _ = self._loaded()
        found = []
        for number in range(self.num_replies):
            reply = model.reply(prompt, seed=seed_of(self.seed, key, number, "reply"))
            fault = fault_of(reply, language)
            told[f"reply left out: {fault}" if fault else "replies"] += 1
            if not fault:
                told["reply without speech: heard as nothing"] += reply["wav"] is None
                found.append(reply)
        return found

    def _rewards(
        self, replies: Sequence[SpokenReply], answer: str, language: str
    ) -> tuple[list[float], list[str]]:
        """Reward of every reply, and what was heard."""
        model, judge = self._loaded()
        spoken = [(i, wav_N) for i, reply in enumerate(replies) if (wav_N := reply["wav"]) is not None]
        heard, rewards = [""] * len(replies), []
        if spoken:
            numbers, wavs = zip(*spoken, strict=True)
            texts = judge.transcribe(wavs, model.sample_rate_hz, [language] * len(wavs))
            for i, text in zip(numbers, texts, strict=True):
                heard[i] = text
        for reply, text in zip(replies, heard, strict=True):
            wanted = {OWN: reply["text"], ANSWER: answer}
            rates = [error_rate(wanted[name], text, language, self.unit) for name in self.against]
            rewards.append(0.0 - sum(rates) / len(rates))
        return rewards, heard

    def _items(self, split: str, kind: str, place: int) -> tuple[int, ...] | None:
        """Clips of a prompt, the same for every process; None if there are no more prompts."""
        model, _ = self._loaded()
        if split not in self._composers:
            reader = ShardReader(self.codes_dir, split)
            check_fingerprints(self._layout, reader.fingerprint, self.codes_dir)
            self._composers[split] = DocumentComposer(
                reader, model.text_tokenizer.encode, model.lm.token_space
            )
        composer = self._composers[split]
        if (split, kind) not in self._groups:
            self._groups[split, kind] = [], iter(range(composer.num_windows(kind)))
        groups, windows = self._groups[split, kind]
        while place >= len(groups) and (window := next(windows, None)) is not None:
            groups += composer.groups(kind, window, seed_of(self.seed, kind, 0, "order"))
        return groups[place] if place < len(groups) else None

    def _loaded(self) -> tuple[SpokenLanguageModel, Any]:
        if self._parts is None:
            import torch

            from omniaudio.metrics.asr_judge import load_judge

            if self.num_threads:
                torch.set_num_threads(self.num_threads)
            judge = load_judge(self.judge, self.device, self.judge_dtype)
            self._parts = read_model(Path(self.folder), self.device), judge
            self._layout = layout_of(self._parts[0])
        return self._parts


def fault_of(reply: SpokenReply, language: str) -> str:
    """Why a reply has no reward; "" if it has one. What a limit cut off never said its end: it cannot be learned."""
    if not reply["complete"]:
        return "cut off"
    if not normalise_text(reply["text"], language):
        return "without words"
    if reply["wav"] is not None and len(reply["wav"]) > HEARD_SEC * reply["sample_rate_hz"]:
        return f"longer than the {HEARD_SEC:g} s that a judge hears"
    return ""


def parts_of(reply: SpokenReply) -> list[Segment]:
    """Texts and codes of a reply in order, as it is learned; blanks between stretches of speech are left out."""
    parts: list[Segment] = []
    for event in reply["events"]:
        if "codes" in event:
            parts.append(np.asarray(event["codes"], np.uint16))
        elif event["text"].strip():
            parts.append(event["text"])
    return parts


def error_rate(wanted: str, heard: str, language: str, unit: str = "word") -> float:
    """Error rate, at most 1: a judge that goes on and on has heard nothing. Languages without spaces have no words."""
    rate = UNITS["character" if language in UNSPACED_LANGUAGES else unit]
    return min(1.0, rate([wanted], [heard], [language]).rate)
