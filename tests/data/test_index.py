import copy
import json
import tracemalloc

import numpy as np
import pytest

from omniaudio.data.index import (
    LINE,
    Entry,
    Listing,
    Maps,
    chars_column,
    list_path,
    text_number,
    write_index,
    write_listing,
)
from omniaudio.data.shards import ShardReader, ShardWriter
from omniaudio.errors import UserError

FACTS = [
    {"num_samples": 10 + i, "rate": 0.5 * i, "text": "é" * (i % 3), "speaker": f"v{i % 2}", "list": [i]}
    | ({"late": 7} if i >= 5 else {})
    for i in range(8)
]


def split(folder, facts=FACTS, per_shard=3):
    """Indexes of shards without tars."""
    names = []
    for start in range(0, len(facts), per_shard):
        names.append(f"train-{len(names):06d}")
        entries = [
            {"key": f"k{start + i}", "facts": fact, "members": {}}
            for i, fact in enumerate(facts[start : start + per_shard])
        ]
        write_index(folder / f"{names[-1]}.tar", 0, {"rate": 1}, entries)
    write_listing(folder, "train", names)
    return Listing(folder, "train")


def test_columns_hold_numbers_and_texts_of_all_shards(tmp_path):
    listing = split(tmp_path)
    assert listing.num_entries == 8 and listing.fingerprint == {"rate": 1}
    assert listing.column("num_samples").tolist() == [10 + i for i in range(8)]
    assert listing.column("rate").tolist() == [0.5 * i for i in range(8)]
    assert listing.column("late").tolist() == [0] * 5 + [7] * 3
    texts = listing.column("text").tolist()
    assert [bool(text) for text in texts] == [i % 3 > 0 for i in range(8)]
    assert texts == [text_number(fact["text"]) for fact in FACTS]
    assert len(set(listing.column("speaker").tolist())) == 2
    assert listing.column("unknown").tolist() == [0] * 8
    assert listing.column(chars_column("text")).tolist() == [i % 3 for i in range(8)]
    assert chars_column("speaker") not in listing.kinds
    assert "list" not in listing.kinds and listing.column(LINE)[1] > 0


def test_a_split_of_an_earlier_version_lacks_the_lengths_of_texts(tmp_path):
    split(tmp_path)
    path = list_path(tmp_path, "train")
    loaded = json.loads(path.read_text())
    del loaded["columns"][chars_column("text")]
    path.write_text(json.dumps(loaded))
    listing = Listing(tmp_path, "train")
    listing.verify()
    assert listing.column(chars_column("text")).tolist() == [0] * 8


def test_lines_are_read_one_by_one_in_any_order(tmp_path):
    listing = split(tmp_path)
    for position in (7, 0, 3, 2, 7):
        assert listing.entry(position) == Entry(f"k{position}", FACTS[position], {}, position // 3)
    copied = copy.deepcopy(listing)
    assert copied.entry(5).key == "k5" and copied.column("late")[5] == 7


def test_an_empty_split_is_one(tmp_path):
    write_listing(tmp_path, "train", [])
    listing = Listing(tmp_path, "train")
    assert listing.num_entries == 0 and len(listing.column("num_samples")) == 0


def test_a_fact_has_one_kind(tmp_path):
    with pytest.raises(UserError, match="'rate' is a text here and a number elsewhere"):
        split(tmp_path, [{"rate": 1}, {"rate": "1"}])


def test_shards_of_two_layouts_make_no_split(tmp_path):
    split(tmp_path)
    write_index(tmp_path / "train-000001.tar", 0, {"rate": 2}, [])
    with pytest.raises(UserError, match=r"000001.*rate: 2 there, 1 here"):
        write_listing(tmp_path, "train", ["train-000000", "train-000001"])


def test_a_large_split_needs_little_memory(tmp_path):
    num = 4_000
    with ShardWriter(tmp_path, "train", max_bytes=1 << 19) as writer:
        for i in range(num):
            writer.write(f"k{i}", {}, {"num_samples": i, "text": f"words {i}", "speaker": "v"})
    whole = sum(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
    tracemalloc.start()
    reader = ShardReader(tmp_path, "train")
    assert reader.entries[num - 1].facts["num_samples"] == num - 1
    assert float(reader.column("num_samples").sum()) == num * (num - 1) / 2
    assert tracemalloc.get_traced_memory()[1] < whole / 10
    tracemalloc.stop()


def test_few_files_are_open_at_once(tmp_path):
    for i in range(5):
        (tmp_path / str(i)).write_text(json.dumps(i))
    maps = Maps(max_open=2)
    for i in (0, 1, 2, 3, 4, 0):
        assert maps[str(tmp_path / str(i))][:] == str(i).encode()
        assert len(maps) <= 2
    with pytest.raises(UserError, match="No such file"):
        maps[str(tmp_path / "none")]


def test_texts_that_differ_have_other_numbers():
    numbers = {text_number(f"text {i}") for i in range(1000)}
    assert len(numbers) == 1000 and 0 not in numbers and text_number("") == 0
    assert max(numbers) < 2**64 and np.uint64(max(numbers)) == max(numbers)
