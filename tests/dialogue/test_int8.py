"""8-bit linear layers: error of rounding, which layers, an export that is smaller and loads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import omniaudio
from omniaudio.dialogue.folder import write_model
from omniaudio.dialogue.int8 import Int8Linear, rounded, to_int8
from omniaudio.lm.cross_entropy import LogitHead, chunked_cross_entropy
from omniaudio.lm.lora import add_lora
from omniaudio.types import Codes


def test_rounding_by_hand() -> None:
    rows, scale = rounded(torch.tensor([[1.0, -2.54, 0.02], [0.0, 0.0, 0.0]]))
    assert rows.tolist() == [[50, -127, 1], [0, 0, 0]] and float(scale[0]) == pytest.approx(0.02)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96), (96,), (0, 96)])
def test_a_rounded_layer_is_near_the_layer(shape, bias) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 64, bias=bias), torch.randn(shape)
    made = Int8Linear.of(linear)
    found, want = made(x), linear(x)
    assert found.shape == want.shape
    # each of the two roundings is at most half a step of 127: its error is that of 96 such terms
    torch.testing.assert_close(found, want, atol=0.03, rtol=0)
    assert shape[0] == 0 or not torch.equal(found, want)
    whole = nn.functional.linear(rounded(x.reshape(-1, 96))[0].float(), made.weight.float())
    scaled = whole * rounded(x.reshape(-1, 96))[1] * made.scale + (0 if linear.bias is None else linear.bias)
    torch.testing.assert_close(found, scaled.reshape(want.shape), atol=1e-5, rtol=1e-5)


def test_tied_and_small_layers_stay_and_empty_ones_take_the_state(monkeypatch) -> None:
    monkeypatch.setattr("omniaudio.dialogue.int8.MIN_SIZE", 4096)

    def make() -> nn.ModuleDict:
        torch.manual_seed(0)
        parts = {"big": nn.Linear(64, 64), "small": nn.Linear(8, 8), "embed": nn.Embedding(64, 64)}
        parts["head"] = nn.Linear(64, 64, bias=False)
        parts["head"].weight = parts["embed"].weight
        return nn.ModuleDict(parts)

    made = to_int8(make())
    kinds = {name: type(part).__name__ for name, part in made.named_children()}
    assert kinds == {"big": "Int8Linear", "small": "Linear", "embed": "Embedding", "head": "Linear"}
    again = to_int8(make(), empty=True)
    again.load_state_dict(made.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(again["big"](x), made["big"](x))


@pytest.mark.parametrize("empty", [False, True])
def test_heads_are_rounded_too_and_cap_as_before(monkeypatch, empty: bool) -> None:
    """Of logits, and of the loss by which texts are scored."""
    monkeypatch.setattr("omniaudio.dialogue.int8.MIN_SIZE", 1)

    def make() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({"head": LogitHead.around(nn.Linear(64, 40, bias=False), cap=0.5)})

    whole, made = make()["head"], to_int8(make())
    if empty:
        made, state = to_int8(make(), empty=True), made.state_dict()
        made.load_state_dict(state)
    x, label = torch.randn(3, 64), torch.tensor([1, 7, 39])
    assert isinstance(made["head"], Int8Linear) and whole(x).abs().max() > 0.4
    for found, wanted in [
        (made["head"](x), whole(x)),
        (chunked_cross_entropy(made["head"], x, label), chunked_cross_entropy(whole, x, label)),
    ]:
        torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)
    assert not torch.equal(made["head"](x), whole(x))


def test_adapters_stay_as_they_are(monkeypatch) -> None:
    """peft takes the dtype of an adapter's weights for that of its inputs: integers would cut them."""
    monkeypatch.setattr("omniaudio.dialogue.int8.MIN_SIZE", 1)
    torch.manual_seed(0)
    layers = nn.ModuleDict({"up_proj": nn.Linear(64, 64), "down_proj": nn.Linear(64, 64)})
    add_lora(layers, rank=4)
    for name, parameter in layers.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(3, 64)
    expected = layers["up_proj"](x)
    rounded = to_int8(layers)["up_proj"](x)
    assert any(type(part).__name__ == "Int8Linear" for part in layers.modules())
    torch.testing.assert_close(rounded, expected, atol=0.1, rtol=0.05)


def test_an_export_in_8_bits_is_smaller_and_says_nearly_the_same(
    parts, trained, model, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("omniaudio.dialogue.int8.MIN_SIZE", 1)
    written = write_model(
        tmp_path / "model", parts, trained[0] / "text_lm/tokenizer.json", {"flow_steps": 2}, int8=True
    )
    loaded = omniaudio.load(tmp_path / "model")
    kinds = {
        name: {type(part).__name__ for part in loaded.get_submodule(name).modules()}
        & {"Int8Linear", "Linear"}
        for name in ("tokenizer", "lm", "flow")
    }
    assert kinds["tokenizer"] == {"Linear"} and "Int8Linear" in kinds["lm"] & kinds["flow"]
    whole, small = (
        (folder / "model.safetensors").stat().st_size
        for folder in (trained[0] / "export" / "model", tmp_path / "model")
    )
    assert small < whole
    codes = Codes(codes_BSK=torch.randint(8, (1, 12, 3)), num_frames_B=torch.tensor([12]))
    wav_N = torch.randn(16_000).numpy()
    assert torch.equal(loaded.encode(wav_N, 16_000).codes_BSK, model.encode(wav_N, 16_000).codes_BSK)
    mels = [made.mel(codes, path="flow", flow_steps=2)[0] for made in (model, loaded, written)]
    assert torch.equal(mels[1], mels[2])
    assert 0 < (mels[1] - mels[0]).abs().mean() < 0.05 * mels[0].std()
    assert loaded.speak("hold the line")["wav"] is not None
