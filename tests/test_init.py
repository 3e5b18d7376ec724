"""First weights: a stack that starts as the identity, convolutions as loud as their input, the same under ZeRO 3."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
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


@pytest.mark.slow
def test_zero3_starts_from_the_weights_of_a_single_process(tmp_path: Path) -> None:
    """Tiny stages, all kinds of backbones, published models, to the bit: two processes, all is sharded at birth."""
    words = [sys.executable, "-m", "tests.tasks.born_run", str(tmp_path)]
    root = Path(__file__).parents[1]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(root)}
    run = subprocess.run(words, cwd=root, env=settings, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    single, zero3 = (load_file(tmp_path / f"{name}.safetensors") for name in ("single", "zero3"))
    assert single.keys() == zero3.keys()
    assert [name for name in single if not single[name].equal(zero3[name])] == []
    assert single["text_lm.backbone.embed_tokens.weight"].std() < 0.03
    ups = [tensor for name, tensor in zero3.items() if ".lora_B." in name]
    assert ups and not any(tensor.any() for tensor in ups)
