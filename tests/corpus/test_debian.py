import os

import pytest

from omniaudio.corpus.debian import fetch_packages
from omniaudio.errors import UserError

APT = """#!/bin/bash
echo "$@" >> {log}
[[ $* == *update* ]] && {{ touch {log}.updated; exit 0; }}
{behaviour}
if [[ $* == *--print-uris* ]]; then
  for name in "$@"; do [[ $name != pkg-* ]] || echo "'http://x/$name' ${{name}}_1.0_all.deb 4200000 SHA256:0"; done
  exit 0
fi
for name in "$@"; do [[ $name == pkg-* ]] && echo "$name" > "${{name}}_1.0_all.deb"; done; exit 0
"""
DPKG = """#!/bin/bash
[[ $1 == -x && -f $2 ]] || { echo "dpkg-deb: error: no archive" >&2; exit 2; }
mkdir -p "$3/usr" && cp "$2" "$3/usr/"
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A PATH with an apt-get and a dpkg of our own; returns (set behaviour, log of apt-get's arguments)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "log"

    def behave(behaviour=""):
        (folder / "apt-get").write_text(APT.format(log=log, behaviour=behaviour))
        (folder / "dpkg").write_text(DPKG)
        for name in ("apt-get", "dpkg"):
            (folder / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return behave, log


def as_user(monkeypatch, number):
    monkeypatch.setattr(os, "geteuid", lambda: number)


def test_fetches_once_and_leaves_nothing_beside(tmp_path, machine, monkeypatch):
    as_user(monkeypatch, 1000)
    machine[0]()
    fetch_packages(["pkg-a", "pkg-b"], tmp_path / "raw")
    fetch_packages(["pkg-a", "pkg-b"], tmp_path / "raw")
    fetch_packages(["pkg-a", "pkg-c"], tmp_path / "raw")
    first, second = "download pkg-a pkg-b", "download pkg-c"
    calls = [f"{first} --print-uris", first, f"{second} --print-uris", second]
    assert machine[1].read_text().splitlines() == calls
    assert sorted(p.name for p in (tmp_path / "raw" / "usr").iterdir()) == [
        f"pkg-{name}_1.0_all.deb" for name in "abc"
    ]
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == [".packages", "usr"]


def test_a_relative_folder_works(tmp_path, machine, monkeypatch):
    as_user(monkeypatch, 1000)
    machine[0]()
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    fetch_packages(["pkg-a"], Path("raw"))
    assert (tmp_path / "raw" / "usr" / "pkg-a_1.0_all.deb").exists()


def test_root_downloads_as_root_and_updates_once(tmp_path, machine, monkeypatch):
    as_user(monkeypatch, 0)
    machine[0](f'[[ -f {machine[1]}.updated ]] || {{ echo "E: Unable to locate package" >&2; exit 100; }}')
    fetch_packages(["pkg-a"], tmp_path / "raw")
    sandbox = "-o APT::Sandbox::User=root"
    download = f"{sandbox} download pkg-a"
    sizes = f"{download} --print-uris"
    assert machine[1].read_text().splitlines() == [sizes, download, f"{sandbox} update", sizes, download]


def test_the_download_shows_megabytes(tmp_path, machine, monkeypatch):
    as_user(monkeypatch, 1000)
    machine[0]("[[ $* == *--print-uris* ]] || { head -c 3000000 /dev/zero > part; sleep 0.5; }")
    shown = []
    monkeypatch.setattr(
        "omniaudio.progress.Progress._show", lambda self, now, note: shown.append((self.done, self.total))
    )
    monkeypatch.setattr("omniaudio.progress.LOG_EVERY_SEC", 0.0)
    fetch_packages(["pkg-a", "pkg-b"], tmp_path / "raw")
    assert shown[-1] == (3, 8)


def test_an_unknown_package_is_one_line_that_says_what_else_to_do(tmp_path, machine, monkeypatch):
    as_user(monkeypatch, 1000)
    machine[0]('echo "W: warning" >&2; echo "E: Unable to locate package pkg-a" >&2; exit 100')
    with pytest.raises(UserError, match=r"Unable to locate package pkg-a.*--audio_dir DIR") as raised:
        fetch_packages(["pkg-a"], tmp_path / "raw")
    assert "\n" not in str(raised.value)
    assert "update" not in machine[1].read_text()  # only root may
    assert not list((tmp_path / "raw" / ".packages").iterdir())


def test_a_system_without_apt_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get is not on this system.*folder=DIR.*--audio_dir DIR"):
        fetch_packages(["pkg-a"], tmp_path / "raw")


def test_a_package_that_does_not_unpack_is_named_and_not_noted(tmp_path, machine, monkeypatch):
    as_user(monkeypatch, 1000)
    machine[0]()
    (tmp_path / "bin" / "dpkg").write_text('#!/bin/bash\necho "dpkg-deb: error: bad archive" >&2; exit 2')
    with pytest.raises(UserError, match="package pkg-a cannot be unpacked: dpkg-deb: error: bad archive"):
        fetch_packages(["pkg-a"], tmp_path / "raw")
    assert not list((tmp_path / "raw" / ".packages").iterdir())
