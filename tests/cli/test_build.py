"""The command as a user gives it: killed with all its processes, given again, and read by what trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omniaudio.cli.main import main
from omniaudio.corpus.build.synthesis import EspeakNg, Voice
from omniaudio.data.shards import ShardReader
from omniaudio.sequence.vocab import TokenSpace
from tests.corpus.build.test_pipeline import contents
from tests.corpus.make_audio import tone
from tests.corpus.test_fotaq import TALK, bundle

WITHOUT_MODELS = [
    f"~pipeline.steps.{name}" for name in ("voice", "same_voice", "recognise", "compare", "words")
]


def words(folder: Path, out: str, *more: str) -> list[str]:
    texts = folder / "texts.txt"
    if not texts.exists():
        lines = [
            f"This is number {i}, of many. It costs ${i}.50 in all! See www.{i}.org for more of it."
            for i in range(16)
        ]
        texts.write_text("\n".join(lines) + "\n")
    split = "split={train: 0.6, dev: 0.2, test: 0.2}"
    given = ["text_source=file", f"text_source.path={texts}", "recogniser=none", "sources_per_job=2", split]
    return ["build", *given, f"data_dir={folder / out}", *WITHOUT_MODELS, *more]


def test_texts_become_a_folder_that_trainings_read(tmp_path, capsys):
    main(words(tmp_path, "out", "executor.num_workers=0"))
    told = capsys.readouterr().out
    assert "8 jobs, 8 to do" in told and "text: a link 16" in told and "train:" in told
    reader = ShardReader(tmp_path / "out" / "shards", "train")
    assert reader.verify() == len(reader) > 0
    facts = next(e.facts for e in reader.entries if "costs" in e.facts["text"])
    assert (
        "point five" in facts["spoken"]
        and facts["passage"].startswith("spoken/text-0")
        and facts["speaker"].startswith("en")
    )
    report = json.loads((tmp_path / "out" / "build.json").read_text())
    assert report["steps"]["speakable"] == [48, 32] and report["num_jobs"] == 8
    main(words(tmp_path, "out", "executor.num_workers=0"))
    assert "is built already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(words(tmp_path, "out", "executor.num_workers=0", "pipeline.steps.split.max_chars=100"))
    assert "holds a build of another pipeline" in capsys.readouterr().err


def test_segments_become_interleaved_documents_of_their_passages(tmp_path):
    from omniaudio.data.compose import DocumentComposer
    from omniaudio.data.shards import ShardWriter, dump_npy

    main(words(tmp_path, "out", "executor.num_workers=0"))
    audio = ShardReader(tmp_path / "out" / "shards", "train")
    with ShardWriter(tmp_path / "codes", "train") as writer:  # as extract writes them
        for entry in audio.entries:
            codes = np.zeros((8, 2), np.uint16)
            writer.write(entry.key, {"codes.npy": dump_npy(codes)}, {**entry.facts, "num_frames": 8})
    composer = DocumentComposer(
        ShardReader(tmp_path / "codes", "train"), lambda t: list(t.encode()), TokenSpace(256, [4, 4])
    )
    groups = [group for seed in range(4) for group in composer.groups("itts", 0, seed) if len(group) > 1]
    assert groups
    for group in groups:
        facts = [audio.entries[i].facts for i in group]
        assert len({f["passage"] for f in facts}) == 1
        assert [f["place"] for f in facts] == list(range(facts[0]["place"], facts[0]["place"] + len(facts)))


class Echo:
    """A judge that hears what it should, word after word a second; of a recording it knows two sentences."""

    def __init__(self, source, device, dtype, batch_size):
        assert (source, device, dtype) == ("none", "cpu", "bf16") and batch_size in (1, 3), (
            "as the config says"
        )

    def transcribe_and_align(self, wavs, rate_hz, languages, texts):
        return list(texts), [
            [(f" {word}", float(i), float(i + 1)) for i, word in enumerate(text.split())] for text in texts
        ]

    def timed_words(self, wav_N, rate_hz, language):
        assert language == "en"
        half = len(wav_N) / rate_hz / 2
        return [(" First one.", 0.0, half), (" Second one.", half, 2 * half)], 0.9


class OneVoice:
    """A speaker encoder that hears one voice."""

    def __init__(self, device):
        assert device == "cpu", "as the config says"

    def embed_utterance(self, wav_N, return_partials=False):
        voice = np.array([1.0, 0.0])
        return (voice, voice[None], None) if return_partials else voice


def built(folder, monkeypatch, *words_of_the_user):
    """The segments of a whole pipeline of conf/ whose steps have small models."""
    from omniaudio.corpus.build import audio_steps, recognition

    monkeypatch.setattr(recognition, "AsrJudge", Echo)
    monkeypatch.setattr(audio_steps, "load_voice_encoder", OneVoice)
    monkeypatch.setattr(
        audio_steps.Dnsmos, "__call__", lambda self, segments: [s.scored(dnsmos=3.0) for s in segments]
    )
    given = [
        "recogniser=none",
        "device=cpu",
        "dtype=bf16",
        "batch_size=3",
        "executor.num_workers=0",
        "split={train: 1, dev: 0, test: 0}",
    ]
    main(["build", *words_of_the_user, *given, f"data_dir={folder / 'out'}"])
    return [(entry.key, entry.facts) for entry in ShardReader(folder / "out" / "shards", "train").entries]


def test_the_pipeline_of_texts(tmp_path, monkeypatch, capsys):
    (tmp_path / "t.txt").write_text("It costs $5 today, not $6. This is another sentence.\n")
    texts = ["text_source=file", f"text_source.path={tmp_path / 't.txt'}"]
    (_, one), (_, two) = built(tmp_path, monkeypatch, "pipeline=synthetic", *texts)
    assert (one["text"], two["text"]) == ("It costs $5 today, not $6.", "This is another sentence.")
    assert "five dollars" in one["spoken"] and one["words"][1] == [" costs", 1.0, 2.0] and one["cer"] == 0
    elsewhere = [
        "recogniser=none",
        "device=cuda",
        "batch_size=1",
        "dtype=bf16",
        "split={train: 1, dev: 0, test: 0}",
    ]
    main(["build", "pipeline=synthetic", *texts, *elsewhere, f"data_dir={tmp_path / 'out'}"])
    assert "is built already" in capsys.readouterr().out, "the same on another machine"


def test_the_pipeline_of_chats(tmp_path, monkeypatch):
    said = [
        {"role": "user", "content": "Where is the cat?"},
        {"role": "assistant", "content": "On the roof, I think."},
    ]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    chats = ["chat_source=file", f"chat_source.path={tmp_path / 'c.jsonl'}"]
    found = built(tmp_path, monkeypatch, "pipeline=instructions", *chats)
    assert [(f["role"], f["text"], len(f["words"])) for _, f in found] == [
        ("user", "Where is the cat?", 4), ("assistant", "On the roof, I think.", 5),
    ]  # fmt: skip
    assert found[1][1]["speaker"] == "en-us+f3_pitch50_rate165"


def test_the_pipeline_of_dialogues(tmp_path, monkeypatch):
    sound = tmp_path / "clip.mp3"
    soundfile.write(sound, tone(0.5, rate_hz=11025), 11025)
    keys = ["07SSSSJ2", "07001FJ1", "07001FP1"]
    game = bundle(tmp_path / "q", {"BOB.DOG": TALK, **{f"{key}.SB": sound.read_bytes() for key in keys}})
    found = built(tmp_path, monkeypatch, "pipeline=dialogues", f"corpus.bundle={game}")
    assert [(f["role"], f["text"]) for _, f in found] == [
        ("user", "Hi Bob."), ("user", "Did you fly?"), ("assistant", "Me?"),
    ]  # fmt: skip
    assert found[0][1]["words"] == [[" Hi", 0.0, 1.0], [" Bob.", 1.0, 2.0]]


def test_the_pipeline_of_recordings(tmp_path, monkeypatch, capsys):
    voice = Voice("en-us+m3", {"rate": 160, "pitch": 50})
    speech = EspeakNg().speak("Please hold the line while we connect your call.", voice, "en", 16_000)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", np.concatenate([speech, np.zeros(8000, np.float32)]), 16_000)
    given = [f"pipeline.source.folder={tmp_path / 'in'}", "pipeline.source.language=en"]
    (tmp_path / "in" / "b.mp4").write_bytes(b"")
    (_, first), (_, second) = built(tmp_path, monkeypatch, "pipeline=crawled", *given)
    assert "files ending in .mp4 are not read: 1" in capsys.readouterr().out
    assert (first["text"], second["text"], second["place"]) == ("First one.", "Second one.", 1)
    assert second["words"][0][:2] == [" Second one.", 0.0] and second["confidence"] == 0.9
    assert first["speaker"] == second["speaker"] and first["speaker"].endswith("-s0")


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor", [["executor.num_workers=2"], ["executor=ray", "executor.num_workers=1", "executor.cpus=0.5"]]
)
def test_kill_9_and_the_same_command_again_give_the_unbroken_folder(tmp_path, executor):
    """Whoever does the jobs; under Ray it is the driver, with all that it has started."""
    if "executor=ray" in executor:
        pytest.importorskip("ray")
    command = [sys.executable, "-m", "omniaudio.cli.main"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    silent = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(
        [*command, *words(tmp_path, "whole", "executor.num_workers=0")], check=True, timeout=300, **silent
    )
    broken = [*command, *words(tmp_path, "broken", *executor)]
    for number in (2,) if "executor=ray" in executor else (1, 4):  # Ray begins slowly
        process = subprocess.Popen(broken, start_new_session=True, **silent)
        while len(list((tmp_path / "broken").glob("jobs/*/job.json"))) < number:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "broken" / "build.json").exists()
    subprocess.run(broken, check=True, timeout=300, **silent)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
