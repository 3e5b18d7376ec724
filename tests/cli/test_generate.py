import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omniaudio.cli import generate
from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.errors import UserError
from tests.dialogue.tiny_experiment import speech

FEW = ["num_seen=1", "num_unseen=1", "num_clips=1"]


@pytest.fixture(scope="module")
def folder(exported, composed) -> Path:
    config = composed("generate", *FEW)
    generate.main(config)
    return Path(config["exp_dir"]) / "generate"


def test_all_three_directions_are_there(folder):
    samples = json.loads((folder / "samples.json").read_text())
    assert [s["kind"] for s in samples] == ["speak", "speak", "transcribe", "reply", "reply"]
    assert [s["source"] for s in samples[:2]] == ["training", "held out"]
    for sample in samples:
        assert (folder / sample["json"]).is_file()
        if sample["kind"] != "speak":
            assert (folder / sample["prompt_wav"]).is_file()


def test_spoken_words_are_a_wav_of_the_stated_length(folder):
    sample = json.loads((folder / "000_speak.json").read_text())
    wav, rate = soundfile.read(folder / sample["wav"])
    assert rate == sample["sample_rate_hz"] == 24000
    assert len(wav) / rate == pytest.approx(sample["seconds"], abs=1e-3)
    assert sum(len(event["codes"]) for event in sample["events"] if "codes" in event) > 0


def test_own_text_and_recording(exported, composed, tmp_path, capsys):
    wav = tmp_path / "question.wav"
    soundfile.write(wav, speech(1.0, 22050, 3), 22050)
    generate.main(composed("generate", "text=hello there", f"input={wav}", f"own_dir={tmp_path}/own"))
    made = sorted(path.name for path in (tmp_path / "own").glob("*.json"))
    assert made == ["000_speak.json", "001_transcribe.json", "002_reply.json", "003_reply.json"]
    assert "speak (yours) 'hello there'" in capsys.readouterr().out


def test_a_conversation_goes_on_from_its_replies(exported, composed, tmp_path, capsys):
    for i in range(2):
        (tmp_path / f"{i}").mkdir()
        soundfile.write(tmp_path / f"{i}" / "said.wav", speech(1.0, 16000, i), 16000)
    turns = f"turns=[{tmp_path}/0/said.wav,{tmp_path}/1/said.wav]"
    for history in ("audio", "text"):
        generate.main(composed("generate", turns, f"history={history}", f"own_dir={tmp_path}/{history}"))
    audio, text = (
        [json.loads((tmp_path / history / f"00{i}_reply.json").read_text()) for i in range(2)]
        for history in ("audio", "text")
    )
    assert [reply["prompt_wav"] for reply in audio] == ["prompt_turn1_said.wav", "prompt_turn2_said.wav"]
    assert audio[0]["events"] == text[0]["events"], "the first turn has no history"
    assert audio[1]["prompt_positions"] > 12 + audio[0]["prompt_positions"], "which it continues"
    assert text[1]["saved_positions"] > 0
    assert text[1]["prompt_positions"] < audio[1]["prompt_positions"]
    assert f"{text[1]['saved_positions']} saved" in capsys.readouterr().out


def test_same_seed_same_speech(exported, composed, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate.main(composed("generate", "text=hello there", f"seed={seed}", f"own_dir={tmp_path}/{name}"))
    codes = [json.loads((tmp_path / n / "000_speak.json").read_text())["events"] for n in "abc"]
    assert codes[0] == codes[1] != codes[2]


def bad_wavs(folder: Path) -> dict[str, Path]:
    rate = 16000
    made = {
        "stereo": speech(1.0, rate, 0)[:, None].repeat(2, 1),
        "empty": np.zeros(0, np.float32),
        "nan": np.full(rate, np.nan, np.float32),
    }
    paths = {name: folder / f"{name}.wav" for name in made}
    for name, wav in made.items():
        soundfile.write(paths[name], wav, rate, subtype="FLOAT")
    paths["text"] = folder / "text.wav"
    paths["text"].write_text("not a wav")
    return {**paths, "missing": folder / "missing.wav"}


@pytest.mark.parametrize("name", ["stereo", "empty", "nan", "text", "missing"])
def test_bad_recordings_are_one_line_that_names_the_file(exported, composed, tmp_path, name):
    path = bad_wavs(tmp_path)[name]
    with pytest.raises(UserError, match=path.name) as error:
        generate.main(composed("generate", f"input={path}", f"own_dir={tmp_path}/own"))
    assert "\n" not in str(error.value)


def test_recording_too_short_to_code_is_one_line(exported, composed, tmp_path):
    soundfile.write(tmp_path / "short.wav", speech(0.01, 16000, 0), 16000)
    with pytest.raises(UserError, match="too short"):
        generate.main(composed("generate", f"input={tmp_path}/short.wav", f"own_dir={tmp_path}/own"))


def test_text_without_words_is_refused(exported, composed, tmp_path):
    with pytest.raises(UserError, match="empty"):
        generate.main({**composed("generate", f"own_dir={tmp_path}/own"), "text": "  "})


def test_a_text_is_read_in_the_voice_that_is_asked_for(exported, composed, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="voice 'ann': this model's training named none"):
        generate.main(composed("generate", "text=hello", "voice=ann", f"own_dir={tmp_path}/own"))
    asked = []
    answer = {"text": "", "wav": None, "events": [], "prompt_positions": 1}
    monkeypatch.setattr(
        SpokenLanguageModel, "reply", lambda _, *chat, **how: asked.append((*chat, how)) or answer
    )
    words = ["text=ciao", "voice=ann", "language=it", "seed=3", f"own_dir={tmp_path}/own"]
    generate.main(composed("generate", *words))
    content = "Per favore, leggi questo ad alta voce: ciao"
    assert asked == [([{"role": "user", "content": content}], {"seed": 3, "voice": "ann"})]


def test_folder_that_is_no_export_is_one_line(composed, tmp_path):
    with pytest.raises(UserError, match="omniaudio export"):
        generate.main(composed("generate", "text=hello", f"model_dir={tmp_path}"))


def test_turns_and_history_are_checked_before_the_model_is_read(composed, tmp_path):
    config = composed("generate", f"model_dir={tmp_path}/nothing")
    with pytest.raises(UserError, match="config turns: 'a.wav' must be a list"):
        generate.main({**config, "turns": "a.wav"})
    with pytest.raises(UserError, match="config history 'sound': can be audio, text"):
        generate.main({**config, "text": "hello", "history": "sound"})


def test_the_sampling_of_the_export_can_be_overridden(exported, composed):
    from omniaudio.cli.generate import load

    own = load(composed("generate")).settings
    words = ["sampling.text.temperature=0", "sampling.audio.top_k=7", "sampling.audio.repetition=1.5"]
    settings = load(composed("generate", *words)).settings
    text, audio = (
        dataclasses.replace(own.text, temperature=0),
        dataclasses.replace(own.audio, top_k=7, repetition=1.5),
    )
    assert settings == dataclasses.replace(own, text=text, audio=audio) != own
    for word, told in (
        ("text.top_p=2", "text.top_p 2: must be a number"),
        ("audio.top_k=few", "audio.top_k 'few'"),
    ):
        with pytest.raises(UserError, match=f"config sampling.{told}"):
            load(composed("generate", f"sampling.{word}"))
