"""The tables of released names: complete at full size, exact on recorded checkpoints of small width."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from omniaudio.cli.main import compose
from omniaudio.config import build
from omniaudio.convert.baichuan_audio import (
    FORMS,
    PRENET_POSITIONS,
    discriminator_converter,
    form_of,
    load_released,
    model_converter,
    to_released,
    vocoder_converter,
)
from omniaudio.encoders.transformer import sinusoids
from omniaudio.errors import UserError
from omniaudio.vocoders.discriminators import WaveDiscriminator

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CONVERTERS = {"model": model_converter, "vocoder": vocoder_converter}
PARTS = {"model": ("tokenizer", "flow", "lm"), "vocoder": ("vocoder",)}


def build_parts(parts: tuple[str, ...], *overrides: str, device: str = "meta") -> dict[str, nn.Module]:
    """Modules of the system's config."""
    config = compose("train", ["experiment=baichuan_audio/flow", "scale=full", *overrides])
    modules = {}
    with torch.device(device):
        for part in parts:
            modules[part] = build(config[part], part)
    return modules


def released_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the released checkpoint, from its compact list."""
    keys = {}
    for line in (GOLDEN / f"released_keys_{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pattern, shape = line.split(" ")
        pieces = re.split(r"\{([^}]+)\}", pattern)
        choices = [_numbers(text) if index % 2 else [text] for index, text in enumerate(pieces)]
        for words in itertools.product(*choices):
            keys["".join(words)] = tuple(int(size) for size in shape.split("x"))
    return keys


def _numbers(text: str) -> list[str]:
    if "-" in text:
        first, last = text.split("-")
        return [str(number) for number in range(int(first), int(last) + 1)]
    return text.split(",")


def golden_state(name: str) -> dict[str, Tensor]:
    prefix = "state_dict/"
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("name", "num_tensors"), [("model", 2022), ("vocoder", 328)])
def test_full_size_covers_the_released_names_both_ways(name: str, num_tensors: int) -> None:
    released = {key: torch.empty(shape, device="meta") for key, shape in released_keys(name).items()}
    assert len(released) == num_tensors
    modules, converter = build_parts(PARTS[name]), CONVERTERS[name]()
    written = to_released(modules, converter)
    assert {k: tuple(v.shape) for k, v in written.items()} == {k: tuple(v.shape) for k, v in released.items()}
    expected = {
        f"{part}.{key}": value for part, m in modules.items() for key, value in m.state_dict().items()
    }
    ours = converter.to_ours(released, expected)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}


def test_vision_is_not_ours() -> None:
    vision = {"model.visual_model.blocks.31.attn.qkv.weight", "model.visual_bridge_model.ln_q.bias"}
    assert model_converter().to_ours({name: torch.zeros(1) for name in vision}, {}) == {}


SMALL = [
    "encoder.width=32",
    "encoder.num_layers=2",
    "encoder.num_heads=4",
    "encoder.ffn_width=64",
    "quantizer.dim=128",
    "books.codebook_sizes=[64,32,16,8,8,8,8,8]",
    "mel_decoder.num_layers=2",
    "mel_decoder.refine_width=24",
    "flow.prenet.mlp_width=128",
    "flow.prenet.width=32",
    "flow.prenet.num_layers=2",
    "flow.prenet.num_heads=4",
    "flow.prenet.ffn_width=64",
    "flow.estimator.width=32",
    "flow.estimator.num_mid_stages=2",
    "flow.estimator.num_transformers=2",
    "flow.estimator.num_heads=4",
    "flow.estimator.head_width=8",
    "flow.estimator.time_width=128",
]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    """The recorded tokenizer, flow decoder included, under full names; the positions that are never read are made."""
    positions = {"audio_flow_matching_decoder.prenet.positional_embedding": sinusoids(PRENET_POSITIONS, 32)}
    return {
        f"audio_tokenizer.{name}": value for name, value in {**golden_state("tokenizer"), **positions}.items()
    }


def test_recorded_tokenizer_and_flow_there_and_back(recorded: dict[str, Tensor]) -> None:
    modules = build_parts(("tokenizer", "flow"), *SMALL, device="cpu")
    load_released(modules, recorded, model_converter())
    back = to_released(modules, model_converter())
    assert back.keys() == recorded.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in recorded.items())


def test_a_lost_tensor_is_named(recorded: dict[str, Tensor]) -> None:
    modules = build_parts(("tokenizer", "flow"), *SMALL, device="cpu")
    lost = "audio_tokenizer.audio_decoder.post_net.layers.12.bias"
    theirs = {name: value for name, value in recorded.items() if name != lost}
    before = modules["tokenizer"].state_dict()["encoder.conv1.weight"].clone()
    with pytest.raises(UserError, match=re.escape(f"not found: {lost}")):
        load_released(modules, theirs, model_converter())
    assert torch.equal(modules["tokenizer"].state_dict()["encoder.conv1.weight"], before), "all or nothing"


def test_w_pack_is_query_key_value() -> None:
    small = [
        "backbone.hidden_size=8",
        "backbone.num_layers=1",
        "backbone.num_heads=4",
        "backbone.num_kv_heads=2",
    ]
    sizes = ["backbone.ffn_size=16", "audio_head.head_dim=4", "books.codebook_sizes=[8,4]"]
    modules = build_parts(("lm",), *small, *sizes, device="cpu")
    theirs = to_released(modules, model_converter())
    weight = torch.arange(16.0)[:, None].expand(16, 8).clone()
    theirs["model.layers.0.self_attn.W_pack.weight"] = weight
    theirs["audio_head.transformer_layers.0.linear1.bias"] += 7.0  # released models hold it and never read it
    load_released(modules, theirs, model_converter())
    attention = modules["lm"].get_submodule("backbone.layers.0.self_attn")
    rows = {part: attention.get_parameter(f"{part}_proj.weight")[:, 0].tolist() for part in "qkv"}
    assert rows == {"q": list(range(8)), "k": list(range(8, 12)), "v": list(range(12, 16))}


def test_recorded_lm_there_and_back() -> None:
    """The recording in tests/golden holds part of a small model; the rest is filled in."""
    overrides = ["backbone.hidden_size=128", "backbone.num_layers=2", "backbone.num_heads=4"]
    overrides += ["backbone.num_kv_heads=2", "backbone.ffn_size=160"]
    overrides += ["audio_head.head_dim=32", "books.codebook_sizes=[64,32,16,8,8,8,8,8]"]
    modules = build_parts(("lm",), *overrides, device="cpu")
    small = to_released(modules, model_converter())
    recorded = {**small, **golden_state("lm")}
    assert recorded.keys() == small.keys()
    load_released(modules, recorded, model_converter())
    back = to_released(modules, model_converter())
    assert back.keys() == recorded.keys()
    unread = re.compile(r"audio_head\.transformer_layers\.\d\.linear[12]\.bias")
    assert all(
        torch.equal(back[name], value) for name, value in recorded.items() if not unread.fullmatch(name)
    )


def test_recorded_vocoder_there_and_back() -> None:
    recorded = golden_state("vocoder")
    config = json.loads((GOLDEN / "vocoder.json").read_text())
    small = [f"vocoder.base_channels={config['init_kwargs/base_channels']}"]
    modules = build_parts(
        ("vocoder",), *small, f"vocoder.f0_width={config['f0_kwargs/cond_channels']}", device="cpu"
    )
    load_released(modules, recorded, vocoder_converter())
    back = to_released(modules, vocoder_converter())
    assert back.keys() == recorded.keys()
    assert all(torch.equal(back[name], value) for name, value in recorded.items())

    newer = {
        name.replace(".weight_g", ".parametrizations.weight.original0").replace(
            ".weight_v", ".parametrizations.weight.original1"
        ): value
        for name, value in recorded.items()
    }
    with torch.no_grad():
        modules["vocoder"].conv_pre.bias.zero_()  # type: ignore[union-attr]
    load_released(modules, newer, vocoder_converter("parametrizations"))
    assert (form_of(recorded), form_of(newer)) == FORMS
    back = to_released(modules, vocoder_converter("parametrizations"))
    assert back.keys() == newer.keys() and all(
        torch.equal(back[name], value) for name, value in newer.items()
    )


def test_discriminator_names() -> None:
    """Three resolutions of five bands of five convolutions and a last one; bias, norm, direction of each."""
    modules = {"discriminator": WaveDiscriminator(periods=())}
    released = to_released(modules, discriminator_converter())
    convs = {f"discriminators.{i}.band_convs.{j}.{k}" for i in range(3) for j in range(5) for k in range(5)}
    convs |= {f"discriminators.{i}.conv_post" for i in range(3)}
    assert set(released) == {f"{conv}.{leaf}" for conv in convs for leaf in ("bias", "weight_g", "weight_v")}
    load_released(modules, released, discriminator_converter())
