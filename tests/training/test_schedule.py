from __future__ import annotations

import pytest
import torch

from omniaudio.training.schedule import warmup_cosine


def test_rises_then_falls_to_its_least_share():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = warmup_cosine(optimizer, num_training_steps=100, warmup_share=0.1, min_share=0.1)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[5] == pytest.approx(1.0)
    assert max(rates) == rates[10] == pytest.approx(2.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.2, rel=0.01)
