"""Shared transformer layer: positions by hand, causality by gradient, padding."""

import math

import pytest
import torch

from omniaudio.encoders.transformer import SelfAttention, TransformerLayer, make_norm, sinusoids


def test_sinusoids_by_hand() -> None:
    table = sinusoids(3, 4)
    assert table.shape == (3, 4)
    # frequencies 1 and 1 / 10000; sines first, then cosines
    expected = [math.sin(2.0), math.sin(2e-4), math.cos(2.0), math.cos(2e-4)]
    torch.testing.assert_close(table[2], torch.tensor(expected))
    with pytest.raises(ValueError, match="even"):
        sinusoids(3, 5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_causality_by_gradient(causal: bool, norm: str) -> None:
    torch.manual_seed(0)
    layer = TransformerLayer(8, 2, 16, causal=causal, norm=norm)  # type: ignore[arg-type]
    x_BTD = torch.randn(1, 6, 8, requires_grad=True)
    layer(x_BTD)[0, 2].sum().backward()
    assert x_BTD.grad is not None
    reached_T = x_BTD.grad[0].abs().sum(-1) > 0
    assert reached_T.tolist() == [True] * 3 + [not causal] * 3


def test_keys_have_no_bias_and_heads_must_divide_the_width() -> None:
    assert SelfAttention(8, 2).k_proj.bias is None
    with pytest.raises(ValueError, match="width 10"):
        SelfAttention(10, 4)


def test_rms_norm_by_hand() -> None:
    y = make_norm("rms", 2, eps=0.0)(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(y, torch.tensor([3.0, 4.0]) / math.sqrt(12.5))


def test_invisible_keys_change_nothing() -> None:
    torch.manual_seed(0)
    layer = TransformerLayer(8, 2, 16)
    x_BTD = torch.randn(1, 5, 8)
    visible_B11T = torch.tensor([True, True, True, False, False])[None, None, None]
    alone = layer(x_BTD[:, :3])
    torch.testing.assert_close(layer(x_BTD, visible_B11T)[:, :3], alone)
    assert not torch.allclose(layer(x_BTD)[:, :3], alone)
