import math

import pytest
import torch

from omniaudio.losses.preference import dpo_loss


def test_loss_and_margin_by_hand():
    ours = torch.tensor([[-1.0, -3.0], [-2.0, -2.0]])
    first = torch.tensor([[-2.0, -2.5], [-1.0, -4.0]])
    loss, margin = dpo_loss(ours, first, beta=0.5)
    assert margin.tolist() == [0.75, -1.5]  # 0.5 * ((1) - (-0.5)), 0.5 * ((-1) - (2))
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-m)) for m in (0.75, -1.5)])


def test_at_the_reference_it_is_log_2_and_pulls_the_replies_apart():
    first = torch.tensor([[-5.0, -7.0]])
    ours = first.clone().requires_grad_()
    loss, _ = dpo_loss(ours, first, beta=0.2)
    assert loss.item() == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    assert gradient.tolist() == [pytest.approx([-0.1, 0.1])]
