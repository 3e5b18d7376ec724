import shutil

import numpy as np
import pytest

from omniaudio.data.mixture import PlannedDocument, largest_part
from omniaudio.data.pairs import CHOSEN, REJECTED, Pair, PairSteps, write_pair
from omniaudio.data.preflight import as_html, preflight
from omniaudio.data.shards import ShardReader, ShardWriter
from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer
from omniaudio.sequence.chat import ChatLayout
from omniaudio.sequence.spans import BY_POSITION, DocumentLayouts
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL

SPACE = TokenSpace(270, [8, 4])
FACTS = {"codebook_sizes": [8, 4], "code_rate_hz": 12.5}


def codes(num, first):
    return np.stack([np.full(num, first), np.arange(num) % 4], axis=1)


def example(i):
    """Of every third pair one reply is text alone; of the others both are spoken."""
    prompt = [{"role": "user", "content": [codes(3 + i, 1), "say it"]}]
    rejected = ["two"] if i % 3 == 0 else ["two", codes(4, 3)]
    return Pair(
        key=f"p/{i}", language="en", prompt=prompt, chosen=["one", codes(2, 2), " more"], rejected=rejected,
        facts={"margin": 0.5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    with ShardWriter(folder, "train", fingerprint=FACTS) as writer:
        for i in range(9):
            write_pair(writer, example(i))
    with ShardWriter(folder, "text", fingerprint=FACTS) as writer:
        prompt = [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": ["well"]},
        ]
        write_pair(writer, Pair(key="t", language="en", prompt=prompt, chosen=["good"], rejected=["bad one"]))
    TextTokenizer.train(["one two more say it good bad"], 270, folder / "tokenizer.json")
    return folder


def steps(folder, split="train", **changes):
    return PairSteps(SPACE, folder / "tokenizer.json", folder, split, **{"tokens_per_step": 120, **changes})


def test_a_pair_comes_back_as_two_documents_of_one_prompt(folder):
    source = steps(folder)
    chat = ChatLayout(SPACE, TextTokenizer.from_file(folder / "tokenizer.json").encode)
    for i in range(9):
        pair = example(i)
        found = source.documents(PlannedDocument("pair", (i,), 0, 0))
        start = len(chat.prompt(pair.prompt, "speech"))
        for document, kind, reply in zip(
            found, (CHOSEN, REJECTED), (pair.chosen, pair.rejected), strict=True
        ):
            wanted = chat.answered(pair.prompt, reply, True, kind, f"p/{i}/{kind}")
            assert document.ids_L.equal(wanted.ids_L) and document.codes_LK.equal(wanted.codes_LK)
            assert document.audio_label_LK.equal(wanted.audio_label_LK)
            assert (document.kind, document.key) == (kind, f"p/{i}/{kind}")
            assert (document.text_label_L[: start - 1] == NO_LABEL).all()
        assert found[0].ids_L[:start].equal(found[1].ids_L[:start]), "also where one reply is text alone"
        assert source.length(i) == sum(map(len, found))


def test_a_text_to_be_read_aloud_is_laid_out_as_tts(folder, tmp_path):
    first, second = codes(3, 1), codes(5, 2)
    with ShardWriter(tmp_path, "train", fingerprint=FACTS) as writer:
        write_pair(writer, Pair(key="r", language="en", prompt="say it", chosen=[first], rejected=[second]))
    source = PairSteps(SPACE, folder / "tokenizer.json", tmp_path, "train", 120)
    found = source.documents(PlannedDocument("pair", (0,), 0, 0))
    ids = TextTokenizer.from_file(folder / "tokenizer.json").encode("say it")
    for document, kind, frames in zip(found, (CHOSEN, REJECTED), (first, second), strict=True):
        wanted = DocumentLayouts(SPACE).tts("r", ids, frames)
        assert all(getattr(document, name).equal(getattr(wanted, name)) for name in BY_POSITION)
        assert (document.kind, document.key) == (kind, f"r/{kind}")
    assert source.length(0) == sum(map(len, found)) and source.batch(0, 0, 1).kinds[:2] == [CHOSEN, REJECTED]


def test_pairs_of_text_need_no_codes(folder):
    source = steps(folder, "text")
    batch = source.batch(0, 0, 1)
    assert batch.kinds == [CHOSEN, REJECTED] * (len(batch.kinds) // 2)
    assert (batch.audio_label_LK == NO_LABEL).all() and not (batch.ids_L == SPACE.audiotext_start).any()
    assert ShardReader(folder, "text").entries[0].members.keys() == {"json"}


def test_a_step_holds_whole_pairs_whoever_has_which_part(folder, monkeypatch):
    monkeypatch.setattr("omniaudio.data.mixture.CHAPTER_TOKENS", 500)
    source = steps(folder)
    for step in range(4):
        parts = [source.batch(step, part, 2) for part in range(2)]
        for batch in (*parts, source.batch(step, 0, 1)):
            assert batch.kinds == [CHOSEN, REJECTED] * (len(batch.kinds) // 2)
            pairs = [key.rpartition("/")[0] for key in batch.keys]
            assert pairs[::2] == pairs[1::2] and len(batch.ids_L) <= 120
        assert sorted(k for part in parts for k in part.keys) == sorted(source.batch(step, 0, 1).keys)
    seen = {key for step in range(60) for key in source.batch(step, 0, 1).keys}
    assert len(seen) == 18


def test_a_pair_with_a_long_reply_is_left_out_and_counted(folder, monkeypatch):
    monkeypatch.setattr("omniaudio.data.mixture.CHAPTER_TOKENS", 500)
    source = steps(folder, max_positions=24)
    lengths = [[len(d) for d in source.documents(PlannedDocument("pair", (i,), 0, 0))] for i in range(9)]
    short = {f"p/{i}" for i, pair in enumerate(lengths) if max(pair) <= 24}
    assert 0 < len(short) < 9
    keys = {key.rpartition("/")[0] for step in range(60) for key in source.batch(step, 0, 1).keys}
    assert keys == short and source.plan.planned()["too_long/pair"] > 0


@pytest.mark.parametrize("num_parts", [1, 3])
def test_the_largest_batches_hold_what_a_part_of_any_step_may(folder, num_parts):
    source = steps(folder, tokens_per_step=200, max_positions=50)
    most = max(len(source.batch(s, part, num_parts).ids_L) for s in range(9) for part in range(num_parts))
    for batch in source.largest(num_parts):
        assert batch.kinds == [CHOSEN, REJECTED] * (len(batch.kinds) // 2)
        assert len(batch.ids_L) >= largest_part(200, 100, num_parts) >= most and int(batch.doc_len_G[0]) == 50


def test_a_damaged_pair_is_left_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pairs")
    entry = ShardReader(folder, "train").entries[4]
    path = tmp_path / "pairs" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[entry.members["codes.npy"].offset + 130] ^= 1
    path.write_bytes(content)
    whole, cut = (steps(f, tokens_per_step=2000).batch(0, 0, 1) for f in (folder, tmp_path / "pairs"))
    assert cut.keys == [key for key in whole.keys if not key.startswith("p/4/")] != whole.keys
    assert len(cut.damaged) >= 1 and "'p/4.codes.npy'" in cut.damaged[0]


def test_codes_of_another_layout_are_refused(folder):
    with pytest.raises(UserError, match=r"codebook_sizes: \[8, 4\] there, \[4, 8\] here"):
        PairSteps(TokenSpace(270, [4, 8]), folder / "tokenizer.json", folder, "train", 100)


def test_a_training_shows_both_replies_before_it_begins(folder):
    page = as_html(preflight(steps(folder), 4, show=2), width=160)
    assert "pair" in page and page.count("/chosen [pair]") == page.count("/rejected [pair]") == 2
