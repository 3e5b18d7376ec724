import os

import pytest

from omniaudio.errors import UserError
from omniaudio.files import partial_path, put_in_place, user_os_errors, write_whole


def test_write_whole_makes_the_folder_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_whole(path, "one")
    write_whole(path, "zwölf".encode())
    assert path.read_text("utf-8") == "zwölf"
    assert os.listdir(path.parent) == ["b.txt"]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    write_whole(path, "old")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_the_machines_refusals_become_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*(directory|exists)") as raised:
        write_whole(tmp_path / "file" / "x", "text")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="No space left"), user_os_errors(tmp_path):
        raise OSError(28, "No space left on device")


def test_put_in_place_renames(tmp_path):
    path = tmp_path / "x.tar"
    partial_path(path).write_bytes(b"abc")
    put_in_place(partial_path(path), path)
    assert path.read_bytes() == b"abc" and not partial_path(path).exists()
