import fcntl
import os
import shutil
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from omniaudio.data.texts import MappedIds, MappedTexts, cut_texts
from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer

CONTENT = (
    "\ufeffone two\n\n \t\n  three four  five six seven   \r\neight\rnine\u2028ten\x0celeven\n"
    "\u3000\u00e9t\u00e9 \u4f60\u597d\u4e16\u754c\u4f60\u597d\u4e16\u754c \n"
    + "ab " * 9
    + "x" * 25
    + "\n"
    + "\u00e9" * 12
)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "texts.txt").write_bytes(CONTENT.encode())
    return tmp_path / "texts.txt"


def held(path):
    """All documents of a file."""
    return [line.strip() for line in path.read_text("utf-8").split("\n") if line.strip()]


def indexes(path):
    return sorted(p.name for p in path.with_name(f"{path.name}.index").iterdir() if p.name != "lock")


@pytest.mark.parametrize("most", [1, 4, 10, 1000])
def test_texts_and_ids_are_those_of_the_file_held_in_memory(path, most):
    assert list(MappedTexts(path, most)) == list(cut_texts(held(path), most))
    tokenizer = TextTokenizer.train([CONTENT], 280)
    pieces = [
        ids[i : i + most] for ids in map(tokenizer.encode, held(path)) for i in range(0, len(ids), most)
    ]
    assert list(MappedIds(path, tokenizer, most)) == pieces
    assert len(MappedTexts(path, 1000)) == 7 and len(indexes(path)) == 3 - (most == 1000)


def test_no_memory_grows_with_the_file(path):
    path.write_text("".join(f"line number {i} of the file\n" for i in range(5_000)))
    tokenizer = TextTokenizer.train(["line number of the file"], 280)
    for source in (MappedTexts(path, 100), MappedIds(path, tokenizer, 100)):
        tracemalloc.start()
        assert len(source) == 5_000 and source[4_999]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < path.stat().st_size / 3
        assert not source.__getstate__()["_arrays"], "a worker process is not sent the file"


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_start_together_make_one_index(path, monkeypatch, locks):
    def no_locks(*_):
        raise OSError

    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    written, write = [], MappedTexts.write
    monkeypatch.setattr(
        MappedTexts, "write", lambda self, home: (written.append(home), time.sleep(0.2), write(self, home))
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: list(MappedTexts(path, 10)), range(4)))
    assert found == [list(cut_texts(held(path), 10))] * 4
    assert len(indexes(path)) == 1 and (len(written) == 1) == locks


def test_a_changed_file_gets_a_new_index_and_what_is_old_or_half_made_goes(path, monkeypatch):
    assert MappedTexts(path, 1000)[6] == "\u00e9" * 12
    (before,) = indexes(path)
    (path.with_name("texts.txt.index") / ".half").mkdir()
    path.write_bytes(CONTENT.replace("one", "two").encode())
    os.utime(path, ns=(0, 1))
    assert MappedTexts(path, 1000)[0] == "\ufefftwo two"
    assert len(indexes(path)) == 1 and indexes(path) != [before]

    def killed(self, home):
        (home / "places.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    write = MappedTexts.write
    monkeypatch.setattr(MappedTexts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        len(MappedTexts(path, 10))
    monkeypatch.setattr(MappedTexts, "write", write)
    assert list(MappedTexts(path, 10)) == list(cut_texts(held(path), 10))


def test_where_nobody_may_write_the_index_stands_in_the_cache(path, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    may = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: mode != os.W_OK and may(p, mode))
    assert list(MappedTexts(path, 10)) == list(cut_texts(held(path), 10))
    assert not path.with_name("texts.txt.index").exists()
    (home,) = (tmp_path / "cache" / "omniaudio").iterdir()
    shutil.copytree(home, path.with_name("texts.txt.index"))
    shutil.rmtree(tmp_path / "cache")
    assert MappedTexts(path, 10)[0] == "\ufeffone two"
    assert not (tmp_path / "cache").exists(), "one that somebody made beside the texts is read"


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(UserError, match=r"t.txt: cannot read the texts \(line 2 is not UTF-8"):
        len(MappedTexts(tmp_path / "t.txt", 10))
    (tmp_path / "t.txt").write_bytes(b"")
    assert not MappedTexts(tmp_path / "t.txt", 10)
    with pytest.raises(UserError, match=r"none.txt: cannot read the texts \(No such file"):
        len(MappedTexts(tmp_path / "none.txt", 10))
