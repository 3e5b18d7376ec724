import pytest

from omniaudio.corpus.folder import AudioFolder
from omniaudio.errors import UserError
from tests.corpus.make_audio import write_audio


def items_of(folder, **settings):
    return AudioFolder(str(folder), "en", **settings).inventory(folder).items


def test_a_text_beside_every_recording(tmp_path):
    for name in ("b.wav", "anna/a.flac", "anna/c.wav"):
        write_audio(tmp_path / name)
    (tmp_path / "b.txt").write_text("\ufeffHello  there\n", "utf-8")
    (tmp_path / "anna" / "a.txt").write_text("Hi")
    (tmp_path / "anna" / "c.txt").write_bytes("für".encode("latin-1"))
    found = [(item.key, item.text, item.speaker, item.fault) for item in items_of(tmp_path)]
    assert found == [
        ("anna/a", "Hi", "anna", None),
        ("anna/c", None, "anna", "transcript not UTF-8"),
        ("b", "Hello there", "folder", None),
    ]


def test_a_recording_without_its_text_has_none(tmp_path):
    write_audio(tmp_path / "a.wav")
    write_audio(tmp_path / "b.wav")
    (tmp_path / "a.txt").write_text("Hi")
    assert [item.text for item in items_of(tmp_path, speaker="me")] == ["Hi", None]
    assert items_of(tmp_path, speaker="me")[0].speaker == "me"


def test_transcripts_tsv(tmp_path):
    for name in ("x/a.wav", "x/b.wav", "y/b.wav", "z.wav"):
        write_audio(tmp_path / name)
    rows = ["x/a\tone", "b\ttwo", "y/b.wav\tthree\tbob\tde", "", "gone\tfour", "../z\tfive", "/etc/z\tsix"]
    (tmp_path / "transcripts.tsv").write_text("\n".join(rows))
    (tmp_path / "metadata.csv").write_text("z|not read")
    inventory = AudioFolder(str(tmp_path), "en").inventory(tmp_path)
    found = [
        (item.text, item.speaker, item.language, item.fault, item.path.is_file()) for item in inventory.items
    ]
    assert found == [
        ("one", "x", "en", None, True),
        ("two", "folder", "en", "several recordings of this name", False),
        ("three", "bob", "de", None, True),
        ("four", "folder", "en", None, False),
        ("five", "__", "en", "path outside the folder", False),
        ("six", "etc", "en", "path outside the folder", False),
        (None, "x", "en", None, True),  # x/b.wav and z.wav stand in no row: counted as bad
        (None, "folder", "en", None, True),
    ]
    assert not inventory.left_out, "the table belongs to them"
    assert all(tmp_path in item.path.resolve().parents for item in inventory.items)


def test_metadata_csv_in_the_ljspeech_layout(tmp_path):
    write_audio(tmp_path / "wavs" / "LJ001-0001.wav")
    (tmp_path / "metadata.csv").write_text("LJ001-0001|Printing, in 1455|Printing, in fourteen fifty-five\n")
    (item,) = items_of(tmp_path, speaker="lj")
    assert (item.key, item.text, item.speaker) == ("wavs/LJ001-0001", "Printing, in 1455", "lj")


def test_keys_that_come_twice_are_marked(tmp_path):
    for name in ("a b.wav", "a_b.flac"):
        write_audio(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("Hi")
    assert [(item.key, item.fault) for item in items_of(tmp_path)] == [
        ("a_b", None),
        ("a_b__2", "duplicate key"),
    ]


def test_files_of_other_endings_are_counted(tmp_path):
    names = (
        "a.txt",
        "a.vtt",
        "b.aiff",
        "b.txt",
        "sub/c.MP4",
        "sub/metadata.csv",
        "LICENSE",
        ".hidden/d.wma",
        ".e",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Hi")
    with pytest.raises(UserError, match=r"no recordings; .*files ending in \.aiff are not read"):
        items_of(tmp_path)
    write_audio(tmp_path / "a.wav")
    found = AudioFolder(str(tmp_path), "en").inventory(tmp_path)
    assert [item.key for item in found.items] == ["a"] and not any(entry.bad for entry in found.left_out)
    assert {entry.name: entry.reason for entry in found.left_out} == {
        "LICENSE": "files without an ending are not read",
        "b.aiff": "files ending in .aiff are not read",
        "b.txt": "files ending in .txt are not read",
        "sub/c.MP4": "files ending in .mp4 are not read",
        "sub/metadata.csv": "files ending in .csv are not read",
    }


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.folder .*none: no such folder"):
        items_of(tmp_path / "none")
    with pytest.raises(UserError, match=r"no recordings; files must end in one of \.wav, \.flac"):
        items_of(tmp_path)
    write_audio(tmp_path / "a.wav")
    with pytest.raises(UserError, match=r"no transcripts; give transcripts\.tsv"):
        items_of(tmp_path)
    (tmp_path / "transcripts.tsv").write_text("a hello")
    with pytest.raises(UserError, match=r"transcripts\.tsv:1: one column"):
        items_of(tmp_path)
    (tmp_path / "transcripts.tsv").write_bytes(b"a\t\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        items_of(tmp_path)


def test_attribution_is_the_users_line(tmp_path):
    assert AudioFolder(str(tmp_path), "en", licence="Mine, CC0").attribution() == "folder: Mine, CC0"
