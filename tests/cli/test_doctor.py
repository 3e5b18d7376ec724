import importlib
from pathlib import Path

import pytest

from omniaudio.cli import doctor
from omniaudio.cli.main import compose
from omniaudio.errors import UserError


def config(tmp_path: Path, **changed) -> dict:
    places = [f"data_dir={tmp_path}/data", f"exp_dir={tmp_path}/exp", "min_free_gb=0"]
    return {**compose("doctor", places), **changed}


def test_this_machine_is_fine_and_nothing_is_left_behind(tmp_path, capsys):
    doctor.main(config(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("checks passed") and all(line[:2] in ("OK", "no") for line in lines[:-1])
    assert list(tmp_path.iterdir()) == []


def test_no_disk_space_says_what_to_do(tmp_path, capsys):
    with pytest.raises(UserError, match="data_dir, exp_dir"):
        doctor.main(config(tmp_path, min_free_gb=10**9))
    assert "choose another data_dir=" in capsys.readouterr().out


def test_no_write_permission_is_found(tmp_path, monkeypatch):
    def refused(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refused)
    (finding, _) = doctor.check_disk(config(tmp_path))
    assert finding.level == "WRONG" and "cannot write (Permission denied)" in finding.told


def test_file_in_the_way_is_found(tmp_path):
    (tmp_path / "data").write_text("")
    (finding, _) = doctor.check_disk(config(tmp_path))
    assert finding.level == "WRONG" and "is a file" in finding.told


def test_package_that_does_not_load_is_named(tmp_path, monkeypatch):
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "soxr":
            raise ImportError("libcudart.so is missing")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    finding = next(iter(doctor.check_packages(config(tmp_path))))
    assert finding.level == "WRONG" and "soxr does not load (libcudart.so" in finding.told


def test_shards_are_read_whole_where_asked(tmp_path):
    from omniaudio.data.shards import ShardWriter

    for split in ("dev", "train"):
        with ShardWriter(tmp_path / "s", split) as writer:
            writer.write("a", {"txt": b"content"}, {"number": 1})
    found = list(doctor.check_shards(config(tmp_path, shards=f"{tmp_path}/s")))
    assert [f.level for f in found] == ["OK", "OK"] and found[1].told.endswith("train: 1 samples, whole")
    tar = tmp_path / "s" / "dev-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"content", b"contexx"))
    bad, good = doctor.check_shards(config(tmp_path, shards=f"{tmp_path}/s"))
    assert (bad.level, good.level) == ("WRONG", "OK") and "crc32" in bad.told
    (none,) = doctor.check_shards(config(tmp_path, shards=f"{tmp_path}/nothing"))
    assert none.level == "WRONG" and "no splits here" in none.told
    assert not list(doctor.check_shards(config(tmp_path)))


def test_no_apt_is_a_remark_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    (finding,) = doctor.check_apt(config(tmp_path))
    assert finding.level == "note" and "--audio_dir" in finding.told


def test_device_that_is_not_there_is_wrong(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (finding,) = doctor.check_device(config(tmp_path, device="cuda"))
    assert finding.level == "WRONG" and "device=cpu" in finding.told
