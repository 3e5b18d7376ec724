from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.training.checkpoint import Checkpoints, Milestones, SafeCheckpointIO


def trainer(value: int) -> SimpleNamespace:
    io = SafeCheckpointIO()
    return SimpleNamespace(
        save_checkpoint=lambda path: io.save_checkpoint({"value": torch.tensor(value)}, path),
        strategy=SimpleNamespace(barrier=lambda: None),
        is_global_zero=True,
    )


def test_the_newest_complete_one_is_found_and_old_ones_go(tmp_path):
    checkpoints = Checkpoints(tmp_path, every_steps=1, keep=2)
    assert checkpoints.newest() is None
    for step in (1, 2, 10):
        checkpoints.write(trainer(step), step)
        assert not (tmp_path / f"step-{step:08d}.ckpt").exists()
        checkpoints.put_in_place(trainer(step))
    (tmp_path / "step-00000011.partial").write_bytes(b"half")
    newest = checkpoints.newest()
    assert newest is not None and newest.name == "step-00000010.ckpt"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002.ckpt", "step-00000010.ckpt"]
    assert SafeCheckpointIO().load_checkpoint(newest)["value"] == 10


def test_pickled_code_is_not_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Payload()}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="[Ww]eights"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(tmp_path):
    SafeCheckpointIO().save_checkpoint({"x": torch.zeros(4)}, tmp_path / "step-00000001.ckpt")
    program = f"""
        import resource, signal, torch
        from pathlib import Path
        from omniaudio.errors import UserError
        from omniaudio.training.checkpoint import SafeCheckpointIO
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            target = Path({str(tmp_path)!r}) / "step-00000002.partial"
            SafeCheckpointIO().save_checkpoint({{"x": torch.zeros(1_000_000)}}, target)
        except UserError as error:
            print("said:", error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert "said:" in out.stdout and "free space" in out.stdout, out.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.ckpt"]


def test_unwritable_target_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, OSError)):
        SafeCheckpointIO().save_checkpoint({}, tmp_path / "file" / "x.ckpt")


def test_milestones_are_kept_after_their_steps_only_and_a_step_may_be_many_batches(tmp_path):
    kept: list[tuple[str, int]] = []
    task, two_a_step = SimpleNamespace(batches_seen=0), SimpleNamespace(accumulate_grad_batches=2)
    milestones = Milestones(
        tmp_path, [1, 3, 9], lambda folder: kept.append((folder.name, int(task.batches_seen)))
    )
    for task.batches_seen in range(1, 9):
        milestones.on_train_batch_end(two_a_step, task, None, None, 0)  # type: ignore[arg-type]
    assert kept == [("step-00000001", 2), ("step-00000003", 6)]


@pytest.mark.parametrize("steps", [[0], [100, -1], ["first"], 1000, None])
def test_milestones_are_steps(tmp_path, steps):
    with pytest.raises(UserError, match=r"^config milestones: .* is not a list of steps, each at least 1$"):
        Milestones(tmp_path, steps, lambda folder: None)
