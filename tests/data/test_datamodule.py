from __future__ import annotations

from types import SimpleNamespace

from omniaudio.data.datamodule import StepData


class Numbers:
    def batch(self, step: int, part: int, num_parts: int) -> list[int]:
        return [step, part, num_parts]


def test_training_starts_where_the_task_stopped_and_validation_at_zero():
    data = StepData(Numbers, Numbers, max_steps=5, val_steps=2)  # type: ignore[arg-type]
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=2, global_rank=1, world_size=2, lightning_module=SimpleNamespace(batches_seen=7)
    )
    assert list(data.train_dataloader()) == [[3, 3, 4], [4, 1, 4], [4, 3, 4]]
    assert list(data.val_dataloader()) == [[0, 1, 2], [1, 1, 2]]
