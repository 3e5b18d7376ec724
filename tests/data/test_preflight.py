import io
import re

import numpy as np
import pytest
from rich.console import Console

from omniaudio.data.clip_mixture import ClipMixture
from omniaudio.data.document_steps import DocumentSteps, TextSteps
from omniaudio.data.mixture import Mixture, PlannedDocument
from omniaudio.data.preflight import as_html, histogram, preflight, seconds_of
from omniaudio.data.shards import ShardWriter, dump_npy
from omniaudio.data.steps import WaveSteps
from omniaudio.frontend.audio import encode_audio
from omniaudio.frontend.text import TextTokenizer
from omniaudio.sequence.vocab import TokenSpace

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight English clips of a second, two Italian ones of three; codes of them; two texts."""
    folder = tmp_path_factory.mktemp("data")
    with (
        ShardWriter(folder / "audio", "train") as audio,
        ShardWriter(
            folder / "codes", "train", fingerprint={"codebook_sizes": [8, 4], "code_rate_hz": 12.5}
        ) as codes,
    ):
        for i in range(10):
            seconds, language, corpus = (1, "en", "home") if i < 8 else (3, "it", "away")
            facts = {"language": language, "corpus": corpus, "speaker": "v", "text": f"number {i}"}
            facts |= {"response": "yes"} if i < 2 else {}
            wav = np.full(seconds * RATE, 0.1, np.float32)
            sound = {"num_samples": len(wav), "sample_rate_hz": RATE} | ({"band_hz": 4000} if i == 0 else {})
            audio.write(f"clip-{i}", {"flac": encode_audio(wav, RATE)}, {**facts, **sound})
            frames = np.zeros((25 * seconds // 2, 2), np.uint16)
            codes.write(f"clip-{i}", {"codes.npy": dump_npy(frames)}, {**facts, "num_frames": len(frames)})
    (folder / "texts.txt").write_text("a text of words\nanother text\n")
    TextTokenizer.train(["a text of words number"], 270, folder / "tokenizer.json")
    return folder


def told(source, **settings):
    console = Console(file=io.StringIO(), width=140)
    console.print(preflight(source, **settings))
    return console.file.getvalue()


def test_hours_padding_and_epochs_of_clips(folder):
    source = WaveSteps(
        folder / "audio",
        "train",
        RATE,
        batch_sec=4,
        crop_sec=2,
        min_band_hz=8000,
        mixture=ClipMixture(weights={"aqa": 1}),
    )
    page = told(source, max_steps=9, num_parts=2)
    rows = [line.replace("│", " ").split() for line in page.splitlines()]
    assert ["home", "en", "8", "0.00", "8", "2"] in rows and ["away", "it", "2", "0.00", "2", "0"] in rows
    assert ["all", "10", "0.00", "10", "2"] in rows
    assert "1 clips are left out" in page
    # 7 clips of 1 s and 2 cropped to 2 s are 11 s; the steps hold 4, 4 and 3 s
    assert "4.0 s with padding, of 4 allowed; 0.0% are padding" in page or "3.7 s with padding" in page
    assert "an epoch has about 3 steps; 9 steps are 3 epochs" in page
    assert "s of audio>" in page


def test_clips_that_are_held_out_are_not_told_as_refused(tmp_path):
    with ShardWriter(tmp_path, "train") as writer:
        for i, only in enumerate(("", "asr", "held_out", "held_out")):
            facts = {"language": "en", "text": "a", "num_samples": RATE, "sample_rate_hz": RATE}
            facts |= {"only": only} if only else {}
            writer.write(f"{i}", {"flac": b""}, facts)
    page = told(
        WaveSteps(tmp_path, "train", RATE, batch_sec=4, crop_sec=2), max_steps=1, num_planned=1, show=0
    )
    assert "1 clips are left out: only a language model is to learn" in page
    assert (
        "2 clips are not learned: their text or passage is in a held-out split of a folder that was joined"
        in page
    )


def test_the_largest_batch_is_that_of_as_many_parts_as_there_are(folder):
    """With one clip or document a part, the longest alone is the largest batch."""
    clips = WaveSteps(folder / "audio", "train", RATE, batch_sec=20, crop_sec=3)
    page = told(clips, max_steps=1, num_parts=5)
    assert "largest batch of one of 5 parts: 6.0 s" in page
    assert "largest batch of one of 64 parts: 3.0 s" in told(clips, max_steps=1, num_parts=64)
    texts = TextSteps(TokenSpace(270), folder / "tokenizer.json", folder / "texts.txt", 2000)
    documents = texts.plan[0]
    assert len(documents) > 64
    longest = max(document.num_tokens for document in documents)
    assert f"largest batch of one of 500 parts: {longest} positions" in told(
        texts, max_steps=1, num_parts=500
    )


def test_a_stage_without_steps_reads_no_data(folder):
    texts = TextSteps(TokenSpace(270), folder / "tokenizer.json", folder / "texts.txt", 16, seed=0)
    assert "max_steps=0: no data is read" in told(texts, max_steps=0)


def test_shares_epochs_and_samples_of_documents(folder, monkeypatch):
    mixture = Mixture(weights={"asr": 3, "tts": 1, "text": 1})
    source = DocumentSteps(
        TokenSpace(270, [8, 4]),
        folder / "tokenizer.json",
        mixture,
        200,
        folder / "codes",
        "train",
        folder / "texts.txt",
    )
    page = told(source, max_steps=50, num_parts=2, show=3)
    rows = {line.split("│")[1].strip(): line.split("│") for line in page.splitlines() if line.count("│") > 5}
    assert rows["asr"][2].strip() == "60.0%" and rows["asr"][4].strip() == rows["tts"][4].strip() == "10"
    assert rows["text"][4].strip() == "2"
    realised = [float(rows[kind][3].strip().rstrip("%")) for kind in ("asr", "tts", "text")]
    assert realised == pytest.approx([60, 20, 20], abs=4)
    positions, epochs = (float(rows["tts"][i].replace(",", "")) for i in (5, 7))
    assert epochs == pytest.approx(50 * 200 * realised[1] / 100 / positions, rel=0.01)
    for kind in ("asr", "tts", "text"):
        assert f"[{kind}]" in page
    assert (
        "<audio_start><12 frames><audio_end>«number" in page
        or "<audio_start><37 frames><audio_end>«number" in page
    )
    assert "longer than 200 positions, left out: none" in page
    planned = [
        PlannedDocument(kind, items, 0, 9)
        for kind, items in (("asr", (8,)), ("intlv", (0, 8)), ("text", (1,)))
    ]
    assert [seconds_of(source, document) for document in planned] == pytest.approx([37 / 12.5, 49 / 12.5, 0])
    monkeypatch.setattr(
        "omniaudio.data.preflight._seconds", lambda reader, items: np.full(len(items), 3600.0)
    )
    rows = {
        line.split("│")[1].strip(): line.split("│")
        for line in told(source, max_steps=50).splitlines()
        if line.count("│") > 7
    }
    assert [rows[kind][6].strip() for kind in ("asr", "tts", "text")] == ["10.00", "10.00", "0.00"]


def test_as_many_samples_are_shown_as_were_asked_for(folder):
    """One of each kind first, then more of them: texts have one kind alone."""
    source = TextSteps(TokenSpace(270), folder / "tokenizer.json", folder / "texts.txt", 40)
    assert told(source, max_steps=50, num_parts=1, show=2).count("[text]") == min(2, len(source.plan[0])) > 1


def test_what_is_learned_is_green_on_the_page(folder):
    source = TextSteps(TokenSpace(270), folder / "tokenizer.json", folder / "texts.txt", 40)
    page = as_html(preflight(source, max_steps=5))
    (folder / "long.txt").write_text("word " * 500)
    long = TextSteps(
        TokenSpace(270), folder / "tokenizer.json", folder / "long.txt", 9000, max_positions=9000
    )
    assert re.search(r"\[21\d\d\s+more\]", told(long, max_steps=1))
    assert page.startswith("<pre>") and "<html" not in page
    learned = [part for part in page.split("<span") if part.startswith(' style="color: #008000')]
    assert any("text" in part for part in learned)


def test_a_histogram_by_hand():
    lines = histogram([0.5, 1.5, 1.6, 9.0], "s", (0, 1, 2, 4, 8, 16)).plain.splitlines()
    assert [line.split()[-1] for line in lines] == ["1", "2", "0", "0", "1"]
    assert lines[1].count("█") == 30 and lines[0].count("█") == 15
