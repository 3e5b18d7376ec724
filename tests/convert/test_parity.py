"""How recordings are read and cases judged; the tool on a whole folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omniaudio.convert.parity import Case, Check, Recording, failure

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
BAND = "discriminators.1.band_convs.2.0.weight_v"


def tool(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "parity.py", folder], capture_output=True, text=True
    )


def copied(tmp_path: Path, *names: str) -> Path:
    for name in names:
        for path in GOLDEN.glob(f"{name}.*"):
            shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def changed(folder: Path, name: str, key: str, by: float) -> None:
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    tensors[key] = (tensors[key].double() + by).to(tensors[key].dtype)
    save_file(tensors, path)


@pytest.mark.slow
def test_every_case_of_the_recordings_in_the_repository_passes() -> None:
    done = tool(GOLDEN)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{len(lines) - 1} passed, 0 failed"
    assert all(line.startswith("ok") for line in lines[:-1])
    for part in ("frontend", "mel24k", "rvq", "tokenizer b2", "flow", "vocoder", "disc", "lm speech"):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize(
    ("name", "key", "by", "said"),
    [
        ("rvq", "codes_bf16", 1, "FAIL rvq with a bfloat16 residual"),
        ("rvq", "first_layer_quant", 1e-3, "its entries differs by 0.001"),
        ("mel24k", "cases/1/mel", 1e-3, "FAIL mel24k case 1"),
        ("frontend", "cases/0/feat", 1e-3, "FAIL frontend case 0"),
        ("disc", "losses/fm", 1e-2, "feature matching differs by"),
        ("disc", f"state_dict/{BAND}/int16", 300, "scores 1 of real differs by"),
    ],
)
def test_a_changed_recording_fails_and_is_named(
    tmp_path: Path, name: str, key: str, by: float, said: str
) -> None:
    changed(copied(tmp_path, name), name, key, by)
    done = tool(tmp_path)
    assert done.returncode == 1 and said in done.stdout
    assert done.stdout.splitlines()[-1].endswith("1 failed")


def test_a_recording_that_cannot_be_built_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = copied(tmp_path, "tokenizer", "rvq")
    values = json.loads((folder / "tokenizer.json").read_text())
    del values["config/audio_config/d_model"]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    done = tool(folder)
    assert "FAIL tokenizer cannot be built" in done.stdout and "KeyError" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 passed, 1 failed"


def test_an_empty_or_missing_folder_is_no_success(tmp_path: Path) -> None:
    assert tool(tmp_path).returncode == 1
    missing = tool(tmp_path / "nowhere")
    assert missing.returncode == 1 and missing.stderr.startswith("usage:")


def test_shapes_nan_and_errors_are_failures() -> None:
    def broken() -> None:
        raise RuntimeError("no such layer")

    good = Case("good", lambda: iter([Check("x", torch.ones(2), [1.0, 1.0])]))
    assert failure(good) == (0.0, "")
    shape = Case("shape", lambda: iter([Check("x", torch.ones(2), torch.ones(3), 10.0)]))
    assert "x differs by inf" in failure(shape)[1]
    nan = Case("nan", lambda: iter([Check("x", torch.tensor([float("nan")]), torch.ones(1), 10.0)]))
    assert "x differs" in failure(nan)[1]
    assert failure(Case("raises", broken))[1] == "RuntimeError: no such layer"


def test_paths_of_a_recording(tmp_path: Path) -> None:
    save_file(
        {"cases/b/x": torch.ones(1), "cases/a/x": torch.zeros(1), "y": torch.ones(2)},
        tmp_path / "r.safetensors",
    )
    of = Recording(tmp_path, "r")
    assert of.names_below("cases/") == ["a", "b"] and of.values == {}
    small = {"z/int16": torch.tensor([-3, 4], dtype=torch.int16), "z/step": torch.tensor(0.5)}
    save_file(small, tmp_path / "s.safetensors")
    assert {name: value.tolist() for name, value in Recording(tmp_path, "s").tensors.items()} == {
        "z": [-1.5, 2.0]
    }
    assert list(of.below("cases/a/")) == ["x"]
