from __future__ import annotations

from types import SimpleNamespace

import torch

from omniaudio.training.callbacks import ProgressBar, Proof
from omniaudio.training.freeze import FreezeProof
from omniaudio.training.whole_step import WholeStep


def trainer(**more: object) -> SimpleNamespace:
    return SimpleNamespace(is_global_zero=True, accumulate_grad_batches=2, callback_metrics={}, **more)


def test_the_bar_counts_optimizer_steps_from_where_the_run_stopped():
    bar, module = (
        ProgressBar("stage", total=10),
        SimpleNamespace(batches_seen=8, whole=WholeStep(2), note=lambda: "books used 90 %"),
    )
    bar.on_train_start(trainer(), module)  # type: ignore[arg-type]
    assert bar.progress is not None and (bar.progress.start, bar.progress.total) == (4, 10)
    for seen in (9, 10):
        module.batches_seen = seen
        bar.on_train_batch_end(trainer(), module, None, None, 0)  # type: ignore[arg-type]
    assert bar.progress.done == 5


def test_the_bar_tells_the_loss_of_the_step_and_the_last_held_out_one():
    task = SimpleNamespace(whole=WholeStep(1), note=lambda: "books used 90 %")
    at = trainer()
    assert ProgressBar._note(at, task) == "books used 90 %"  # type: ignore[arg-type]
    task.whole.add({"loss": torch.tensor(2.5)})
    at.callback_metrics["val/loss"] = torch.tensor(1.25)
    assert ProgressBar._note(at, task) == "train/loss 2.500  val/loss 1.250  books used 90 %"  # type: ignore[arg-type]


def test_the_proof_is_taken_at_both_ends_and_the_clock_is_kept(tmp_path):
    saved = []
    stage = SimpleNamespace(save_progress=lambda: saved.append(True))
    module = torch.nn.Linear(2, 2).requires_grad_(False)
    proof = Proof(FreezeProof(tmp_path / "freeze.json"), stage, resumed=False)  # type: ignore[arg-type]
    proof.on_train_start(trainer(), module)  # type: ignore[arg-type]
    proof.on_save_checkpoint(trainer(), module, {})  # type: ignore[arg-type]
    proof.on_train_end(trainer(), module)  # type: ignore[arg-type]
    assert saved == [True] and '"weight"' in (tmp_path / "freeze.json").read_text()
