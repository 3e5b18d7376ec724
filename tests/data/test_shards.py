import copy
import glob
import io
import json
import resource
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from omniaudio.data.index import write_index, write_listing
from omniaudio.data.shards import ShardReader, ShardWriter, check_member_name, dump_npy, load_npy
from omniaudio.errors import UserError

SAMPLES = [
    (f"en/a-{i}", {"flac": bytes([i]) * (500 + 300 * i)}, {"num_samples": i, "text": "é"}) for i in range(7)
]


def write(folder, samples=SAMPLES, split="train", **settings):
    with ShardWriter(folder, split, **settings) as writer:
        for key, members, facts in samples:
            writer.write(key, members, facts)
    return folder


def test_reads_back_in_order_across_shards(tmp_path):
    reader = ShardReader(write(tmp_path, max_bytes=6_000), "train")
    assert len(reader) == reader.verify() == 7 and len(reader.shards) > 2
    assert all(path.stat().st_size <= 10_240 for path in reader.shards)
    for position in (6, 0, 3):
        key, members, facts = SAMPLES[position]
        assert reader.entries[position].key == key and reader.entries[position].facts == facts
        read = reader.read(position)
        assert read["flac"] == members["flac"] and json.loads(read["json"]) == facts


def test_plain_webdataset_reads_the_same(tmp_path):
    write(tmp_path, max_bytes=6_000)
    urls = sorted(glob.glob(f"{tmp_path}/train-*.tar"))
    found = [(s["__key__"], s["flac"]) for s in webdataset.WebDataset(urls, shardshuffle=False)]
    assert found == [(key, members["flac"]) for key, members, _ in SAMPLES]


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, max_bytes=6_000, fingerprint={"code_rate_hz": 12.5})
    paths = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert any(path.parent.name == "train.columns" for path in paths)
    for path in paths:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


@settings(max_examples=20, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=1500), max_size=8),
    max_bytes=st.integers(1, 9_000),
    seed=st.integers(0, 99),
)
def test_any_content_survives(tmp_path_factory, contents, max_bytes, seed):
    samples = [(f"k{i}", {"txt": content}, {"seed": seed}) for i, content in enumerate(contents)]
    reader = ShardReader(write(tmp_path_factory.mktemp("s"), samples, max_bytes=max_bytes), "train")
    assert [reader.read(i)["txt"] for i in range(len(reader))] == contents
    assert reader.verify() == len(contents)


def test_arrays_of_codes_survive(tmp_path):
    codes_SK = np.arange(24, dtype=np.uint16).reshape(3, 8)
    write(tmp_path, [("a", {"codes.npy": dump_npy(codes_SK)}, {"num_frames": 3})])
    read = load_npy(ShardReader(tmp_path, "train").read(0)["codes.npy"])
    assert read.dtype == np.uint16 and np.array_equal(read, codes_SK)
    names = [s["__key__"] for s in webdataset.WebDataset(f"{tmp_path}/train-000000.tar", shardshuffle=False)]
    assert names == ["a"]


def test_a_reader_travels_to_another_process(tmp_path):
    reader = ShardReader(write(tmp_path), "train")
    reader.read(0)
    assert copy.deepcopy(reader).read(1) == reader.read(1)


def test_a_second_run_replaces_the_first(tmp_path):
    write(tmp_path, max_bytes=1_000)
    write(tmp_path, split="train-long")
    write(tmp_path, SAMPLES[:2])
    assert len(ShardReader(tmp_path, "train")) == 2
    assert len(ShardReader(tmp_path, "train-long")) == 7  # another split is left alone
    assert len(list(tmp_path.glob("train-0*.tar"))) == 1


def test_an_unfinished_run_is_refused(tmp_path):
    def broken():
        yield from SAMPLES[:3]
        raise KeyboardInterrupt

    write(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, broken(), max_bytes=3_000)
    with pytest.raises(UserError, match=r"'train' is not there or was not finished"):
        ShardReader(tmp_path, "train")
    assert not list(tmp_path.glob(".*"))
    assert len(ShardReader(write(tmp_path), "train")) == 7


def test_fingerprints_are_kept_and_compared(tmp_path):
    write(tmp_path, max_bytes=3_000, fingerprint={"code_rate_hz": 12.5})
    assert ShardReader(tmp_path, "train").fingerprint == {"code_rate_hz": 12.5}
    path = tmp_path / "train-000001.index.jsonl"
    path.write_text(path.read_text().replace("12.5", "25.0"))
    with pytest.raises(UserError, match=r"000001.*code_rate_hz: 25\.0 there, 12\.5 here"):
        list(ShardReader(tmp_path, "train").entries)


def tar_of(folder):
    return folder / "train-000000.tar"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_a_cut_tar_is_named_with_counts(tmp_path, share):
    content = tar_of(write(tmp_path)).read_bytes()
    tar_of(tmp_path).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"000\.tar: expected \d+ bytes with 7 samples, found \d+ bytes"):
        ShardReader(tmp_path, "train")


def test_a_cut_between_members_names_the_first_that_is_lost(tmp_path):
    entry = ShardReader(write(tmp_path), "train").entries[3]
    content = tar_of(tmp_path).read_bytes()
    tar_of(tmp_path).write_bytes(content[: entry.members["flac"].offset - 512])
    with pytest.raises(UserError, match=r"with 3 whole samples, the first member .* is 'en/a-3\.flac'"):
        ShardReader(tmp_path, "train")


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory, share, bit):
    folder = write(tmp_path_factory.mktemp("s"))
    content = bytearray(tar_of(folder).read_bytes())
    entries = ShardReader(folder, "train").entries
    used = [range(m.offset - 512, m.offset + m.size) for e in entries for m in e.members.values()]
    # The two bytes that end a header's checksum say nothing, and no reader of tars looks at them.
    places = [place for part in used for place in part if place - part.start not in (154, 155)]
    content[places[int(share * len(places))]] ^= 1 << bit
    tar_of(folder).write_bytes(content)
    with pytest.raises(UserError, match=r"train-000000\.tar: member 'en/a-\d\.(flac|json)'"):
        ShardReader(folder, "train").verify()


def test_a_flipped_payload_byte_names_the_sample_and_leaves_the_others(tmp_path):
    entry = ShardReader(write(tmp_path), "train").entries[2]
    content = bytearray(tar_of(tmp_path).read_bytes())
    content[entry.members["flac"].offset] ^= 1
    tar_of(tmp_path).write_bytes(content)
    reader = ShardReader(tmp_path, "train")
    with pytest.raises(UserError, match=r"'en/a-2\.flac': expected 1100 bytes .*, found 1100 with"):
        reader.read(2)
    assert reader.read(3)["flac"] == SAMPLES[3][1]["flac"]


def test_missing_files_are_named(tmp_path):
    write(tmp_path, max_bytes=3_000)
    (tmp_path / "train-000001.tar").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"train-000001\.tar: shard is missing; its index names \d samples"):
        ShardReader(tmp_path, "train")
    (tmp_path / "away").rename(tmp_path / "train-000001.tar")
    (tmp_path / "train-000001.index.jsonl").unlink()
    with pytest.raises(UserError, match=r"no train-000001\.index\.jsonl"):
        list(ShardReader(tmp_path, "train").entries)


def changed(folder, old, new, name="train-000000.index.jsonl"):
    """The same shards with another text in one of their files."""
    path = folder / name
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    return folder


def test_another_format_and_broken_indexes_are_refused(tmp_path):
    listing = "train.shards.json"
    with pytest.raises(UserError, match="format 1, this version reads 2"):
        ShardReader(changed(write(tmp_path), '"format": 2', '"format": 1', listing), "train")
    with pytest.raises(UserError, match="broken listing"):
        ShardReader(changed(write(tmp_path), '"shards"', '"chards"', listing), "train")
    with pytest.raises(UserError, match="should hold 8 samples, its shards name 7"):
        ShardReader(changed(write(tmp_path), '"num_entries": 7', '"num_entries": 8', listing), "train")
    with pytest.raises(UserError, match="not valid json"):
        ShardReader(changed(write(tmp_path), '{"format"', '{format"', listing), "train")
    with pytest.raises(UserError, match=r"shard '\.\./train-000000' is refused"):
        ShardReader(changed(write(tmp_path), '"train-000000"', '"../train-000000"', listing), "train")
    with pytest.raises(UserError, match="not finite"):
        write(tmp_path, [("a", {}, {"score": float("nan")})])
    with pytest.raises(UserError, match=r"index\.jsonl: format 1, this version reads 2"):
        ShardReader(changed(write(tmp_path), '"format": 2', '"format": 1'), "train").entries[0]
    with pytest.raises(UserError, match="broken index"):
        ShardReader(changed(write(tmp_path), '"facts"', '"fatcs"'), "train").entries[3]
    with pytest.raises(UserError, match="broken index"):
        ShardReader(changed(write(tmp_path), '{"key": "en/a-3"', '{"key": en/a-3""'), "train").entries[3]
    with pytest.raises(UserError, match="should name 8 samples, names 7"):
        ShardReader(changed(write(tmp_path), '"num_entries": 7', '"num_entries": 8'), "train").verify()
    with pytest.raises(UserError, match="changed since the split was made"):
        ShardReader(changed(write(tmp_path), "en/a-3", "en/a-33"), "train").entries[0]
    column = write(tmp_path) / "train.columns" / "num_samples.bin"
    column.write_bytes(column.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"num_samples\.bin: expected 56 bytes, found 55"):
        ShardReader(tmp_path, "train").column("num_samples")


REFUSED = ["a.pyd", "a.pkl", "a.pickle", "a.pt", "a.pth", "a", "a.json.pkl"]
ESCAPING = ["../a.json", "/a.json", "a/../b.json", "a//b.json", ".json"]


@pytest.mark.parametrize("name", REFUSED + ESCAPING)
def test_code_and_escaping_paths_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="is refused"):
        check_member_name(name, "shard")


def test_the_writer_refuses_code_and_escaping_paths(tmp_path):
    for key, kind in [("a", "pkl"), ("../a", "json")]:
        with pytest.raises(UserError, match="is refused"):
            write(tmp_path, [(key, {kind: b""}, {})])


def test_the_reader_refuses_an_index_that_names_code(tmp_path):
    reader = ShardReader(changed(write(tmp_path), '"flac"', '"pyd2"'), "train")
    with pytest.raises(UserError, match=r"member 'en/a-0\.pyd2' is refused.*no pickle"):
        reader.entries[0]


def forge(folder, info, content=b"", member=0):
    """Put another tar member where the index expects one of its own."""
    entry = ShardReader(write(folder), "train").entries[member]
    place = entry.members["flac"]
    whole = bytearray(tar_of(folder).read_bytes())
    whole[place.offset - 512 : place.offset] = info.tobuf(tarfile.USTAR_FORMAT)[:512]
    tar_of(folder).write_bytes(whole)
    return ShardReader(folder, "train")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("en/a-0.flac")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(UserError, match=r"'en/a-0\.flac': expected a file of 500 bytes.*no regular file"):
        forge(tmp_path, info).verify()


def test_a_renamed_member_is_refused(tmp_path):
    info = tarfile.TarInfo("en/evil.pkl")
    info.size = 500
    with pytest.raises(UserError, match=r"expected a file of 500 bytes, found 'en/evil\.pkl'"):
        forge(tmp_path, info).verify()


def test_members_that_the_index_does_not_name_are_found(tmp_path):
    def again(chosen):
        folder = write(tmp_path)
        path = folder / "train-000000.index.jsonl"
        lines = path.read_text().splitlines()
        head, entries = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        write_index(folder / "train-000000.tar", head["num_bytes"], {}, [entries[i] for i in chosen])
        write_listing(folder, "train", ["train-000000"])
        return ShardReader(folder, "train")

    assert again(range(7)).verify() == 7
    with pytest.raises(UserError, match="more members than its index names"):
        again(range(6)).verify()
    with pytest.raises(UserError, match=r"member 'en/a-1\.flac': expected at byte 512"):
        again(range(1, 7)).verify()


def test_a_pickle_inside_an_array_does_not_run(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    code = ["cbuiltins", "open", f"(S'{tmp_path}/touched'", "S'w'", "tR."]
    buffer.write("\n".join(code).encode())
    with pytest.raises(UserError, match="array refused"):
        load_npy(buffer.getvalue())
    assert not (tmp_path / "touched").exists()
    np.load(io.BytesIO(buffer.getvalue()), **{"allow" + "_pickle": True})
    assert (tmp_path / "touched").exists(), "the payload is a real one"


def test_mistakes_of_the_caller_are_named(tmp_path):
    with pytest.raises(UserError, match="'a' is written twice"):
        write(tmp_path, [("a", {}, {}), ("a", {}, {})])
    with pytest.raises(UserError, match="longer than 100 bytes"):
        write(tmp_path, [("a" * 96, {}, {})])
    with pytest.raises(UserError, match="split 'a/b'"):
        ShardWriter(tmp_path, "a/b")


def test_a_full_disk_is_one_line_and_leaves_no_split(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    try:
        with pytest.raises(UserError, match="File too large") as raised:
            write(tmp_path, [(f"k{i}", {"txt": bytes(900)}, {}) for i in range(9)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="was not finished"):
        ShardReader(tmp_path, "train")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write(tmp_path / "file" / "shards")
