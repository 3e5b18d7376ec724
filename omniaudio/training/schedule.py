"""Learning-rate schedules, from the library, with lengths as shares of the training."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Optimizer, num_training_steps: int, warmup_share: float, min_share: float
) -> LambdaLR:
    """Linear warm-up over ``warmup_share`` of the steps, then a cosine down to ``min_share`` of the rate."""
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    schedule: LambdaLR = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer,
        num_warmup_steps=max(1, round(warmup_share * num_training_steps)),
        num_training_steps=num_training_steps,
        min_lr_rate=min_share,
    )
    return schedule
