"""First weights: a stack that starts as the identity, and convolutions as loud as their input."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from omniaudio import init
from omniaudio.acoustic.prenet import PrenetLayer
from omniaudio.acoustic.unet import ConditionalUNet, TransformerBlock
from omniaudio.encoders.transformer import TransformerLayer
from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.quantizers.mel_decoder import RefineNet


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "BRANCH_GAIN", 0.0)


@pytest.mark.usefixtures("silent")
def test_a_new_layer_changes_nothing_and_learns_all_the_same() -> None:
    layer, x_BTD = TransformerLayer(8, 2, 16), torch.randn(1, 5, 8)
    assert torch.equal(layer(x_BTD), x_BTD)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x_BTD).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (layer.fc1.weight, layer.fc2.weight))


@pytest.mark.usefixtures("silent")
def test_every_residual_branch_and_every_correction_starts_silent() -> None:
    prenet = PrenetLayer(8, 2, 16)
    block = TransformerBlock(8, 2, 4)
    ends = [prenet.attention.out_proj, prenet.fc2, block.to_out, block.fc2]
    ends += [ConditionalUNet(3, 8, 1, 1, 2, 4, 16).final_proj, RefineNet(4, 8, 2).out]
    assert all(not parameter.any() for end in ends for parameter in end.parameters())


def test_the_encoder_hears_more_than_positions() -> None:
    """Whisper's log-mel has a spread of about a half; positions have 0.7."""
    torch.manual_seed(0)
    encoder = WhisperEncoder(80, 192, 1, 3, 384)
    x_BDT = functional.gelu(encoder.conv1(0.5 * torch.randn(1, 80, 200)))
    assert 0.2 < float(functional.gelu(encoder.conv2(x_BDT)).std()) < 0.8  # 0.03 with torch's first weights


def test_loud_convolutions_keep_the_variance() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv1d(64, 64, 3), nn.Conv1d(64, 64, 3)
    init.start_loud(first, second)
    y = second(torch.relu(first(torch.randn(4, 64, 200))))
    assert 1.0 < float(y.std()) < 2.0
