"""Prenet: stretching, causality, padding."""

import pytest
import torch

from omniaudio.acoustic.prenet import Prenet, stretch
from omniaudio.errors import UserError


def new_prenet() -> Prenet:
    torch.manual_seed(0)
    return Prenet(6, 16, 8, 2, 2, 16, num_mels=4).eval()


def test_stretch_repeats_the_nearest_step() -> None:
    x_BTD = torch.tensor([[0.0, 1.0, 2.0, 9.0], [5.0, 6.0, 9.0, 9.0]])[..., None]
    y_BTD = stretch(x_BTD, torch.tensor([3, 2]), torch.tensor([6, 2]))
    assert y_BTD[0, :, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert y_BTD[1, :2, 0].tolist() == [5, 6]


def test_equal_lengths_change_nothing() -> None:
    x_BTD = torch.randn(2, 7, 3)
    length_B = torch.tensor([7, 7])
    assert torch.equal(stretch(x_BTD, length_B, length_B), x_BTD)


def test_sees_no_future() -> None:
    hidden = torch.randn(1, 9, 6, requires_grad=True)
    length_B = torch.tensor([9])
    new_prenet()(hidden, length_B, length_B)[0, :, 4].sum().backward()
    assert hidden.grad is not None
    touched = hidden.grad[0].abs().sum(-1) > 0
    assert touched.tolist() == [True] * 5 + [False] * 4


@torch.no_grad()
def test_alike_alone_and_in_a_batch() -> None:
    prenet, hidden = new_prenet(), torch.randn(2, 9, 6)
    length_B = torch.tensor([9, 5])
    both = prenet(hidden, length_B, length_B)
    alone = prenet(hidden[1:, :5], length_B[1:], length_B[1:])
    assert both.shape == (2, 4, 9)
    torch.testing.assert_close(both[1:, :, :5], alone)
    assert both[1, :, 5:].abs().max() == 0


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"width 8 .*num_heads 3"):
        Prenet(6, 16, 8, 1, 3, 16, num_mels=4)
