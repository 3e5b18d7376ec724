"""Parity of flow matching, vocoder and discriminator."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.convert.baichuan_audio import (
    discriminator_converter,
    model_converter,
    to_released,
    vocoder_converter,
)
from omniaudio.convert.parity import Case, Check, Checks, Recording, there_and_back
from omniaudio.frontend.mel import MelSpec
from omniaudio.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss, tpr_loss
from omniaudio.vocoders.discriminators import BANDS, WaveDiscriminator
from omniaudio.vocoders.hift import HiFT

VOCODER_MEL = MelSpec(24000, 1920, 480, 1920, 80, 0.0, 8000.0, "ln", False)
HIDDEN_RATE_HZ = 50.0
RESOLUTIONS = (2048, 1024, 512)
MAPS_OF_BAND = 4
"""Feature maps that a resolution discriminator gives of each band."""
FLOW = "audio_tokenizer.audio_flow_matching_decoder."


def build_flow(state: Mapping[str, Tensor], num_heads: int, unet_heads: int) -> FlowMatchingDecoder:
    """A flow decoder of the widths of recorded tensors (names begin with prenet, conditional_decoder)."""
    unet = "conditional_decoder"

    def count(pattern: str) -> int:
        return len({m[1] for key in state if (m := re.match(pattern, key))})

    mlp = state["prenet.in_mlp.0.weight"]
    first = state[f"{unet}.down_blocks.0.1.0.attn1.to_q.weight"]
    prenet = Prenet(
        hidden_width=mlp.shape[1],
        mlp_width=mlp.shape[0],
        width=len(state["prenet.final_norm.weight"]),
        num_layers=count(r"prenet\.transformer_layers\.(\d+)\."),
        num_heads=num_heads,
        ffn_width=len(state["prenet.transformer_layers.0.fc1.weight"]),
        num_mels=len(state["prenet.out_proj.weight"]),
    )
    estimator = ConditionalUNet(
        num_mels=prenet.num_mels,
        width=first.shape[1],
        num_mid_stages=count(rf"{unet}\.mid_blocks\.(\d+)\."),
        num_transformers=count(rf"{unet}\.down_blocks\.0\.1\.(\d+)\."),
        num_heads=unet_heads,
        head_width=first.shape[0] // unet_heads,
        time_width=len(state[f"{unet}.time_mlp.linear_1.weight"]),
    )
    return FlowMatchingDecoder(VOCODER_MEL, prenet, estimator, HIDDEN_RATE_HZ).eval()


def unet_heads(folder: Path) -> tuple[int, int]:
    """Heads of prenet and U-Net: tensors do not tell them, the configuration beside flow does."""
    for name in ("tokenizer", "lm"):
        path = folder / f"{name}.json"
        if path.exists() and "config/flow_matching_config/num_heads" in (
            values := json.loads(path.read_text())
        ):
            config = "config/flow_matching_config/"
            return values[f"{config}prenet_attention_heads"], values[f"{config}num_heads"]
    raise FileNotFoundError(f"{folder}: flow needs the heads that tokenizer.json or lm.json names")


def flow_cases(of: Recording, heads: tuple[int, int]) -> Iterator[Case]:
    flow = build_flow(of.below("state_dict/"), *heads)
    theirs = {FLOW + key: value for key, value in of.below("state_dict/").items()}

    def unet() -> Checks:
        valid_BT = of["mask"][: len(of["unet/x"]), 0].bool()
        velocity = flow.estimator(of["unet/x"], of["unet/mu"], of["unet/t"], valid_BT)
        yield Check("velocity", velocity, of["unet/y"], 1e-4)

    def euler() -> Checks:
        valid_BT = of["mask"][: len(of["cfm/mu"]), 0].bool()
        steps, rate = len(of["cfm/t_span"]) - 1, of.values["cfm/cfg_rate"]
        mel = flow.integrate(of["cfm/noise"], of["cfm/mu"], valid_BT, steps, rate)
        valid_B1T = valid_BT[:, None]
        yield Check("mel", mel * valid_B1T, of["cfm/out"] * valid_B1T, 1e-3)

    def loss() -> Checks:
        valid_BT = of["mask"][:, 0].bool()
        time_B = 1 - torch.cos(of["loss/t_uniform"].flatten() * math.pi / 2)
        drawn = (of["loss/z"], time_B, of["loss/cfg_keep"].bool())
        total = flow.velocity_error(of["loss/x1"], of["loss/mu"], valid_BT, *drawn)
        yield Check("loss", total / (flow.prenet.num_mels * valid_BT.sum()), of["loss/loss"], 1e-5)

    yield there_and_back({"flow": flow}, theirs, model_converter())
    for name, run in (("velocity of one step", unet), ("Euler steps with guidance", euler), ("loss", loss)):
        yield Case(f"flow {name}", run)


def vocoder_cases(of: Recording) -> Iterator[Case]:
    size = of.sizes("init_kwargs/")
    source = {
        "num_harmonics": size("nb_harmonics"),
        "sine_amplitude": size("nsf_alpha"),
        "noise_std": size("nsf_sigma"),
        "voiced_threshold_hz": size("nsf_voiced_threshold"),
    }
    theirs = of.below("state_dict/")
    last = next(
        value for key, value in theirs.items() if re.fullmatch(r"conv_post\..*(weight_v|original1)", key)
    )
    n_fft = len(last) - 2
    hop = VOCODER_MEL.hop // math.prod(size("upsample_rates"))
    hift = HiFT(
        VOCODER_MEL,
        size("base_channels"),
        size("upsample_rates"),
        size("upsample_kernel_sizes"),
        size("resblock_kernel_sizes"),
        [size(f"resblock_dilation_sizes/{i}") for i in range(len(size("resblock_kernel_sizes")))],
        size("source_resblock_kernel_sizes"),
        of.values["f0_kwargs/cond_channels"],
        n_fft,
        hop,
        source,
    ).eval()

    def speak() -> Checks:
        yield Check("f0", hift.f0_predictor(of["mel"]), of["f0"], 1e-3)
        yield Check("waveform", hift.filter(of["mel"], of["source"][:, 0]), of["wav"], 1e-4)

    yield there_and_back({"vocoder": hift}, theirs, vocoder_converter())
    yield Case("vocoder mel to waveform", speak)


def disc_cases(of: Recording) -> Iterator[Case]:
    real, fake = ([of[f"y_d_{side}/{i}"] for i in range(len(of.names_below("y_d_r/")))] for side in "rg")

    def scores() -> Checks:
        yield Check("generator", generator_loss(fake), of["losses/gen"], 1e-5)
        yield Check("discriminator", discriminator_loss(real, fake), of["losses/disc"], 1e-5)
        yield Check("TPR", tpr_loss(fake, real), of["losses/tpr"], 1e-5)

    yield Case("disc losses of recorded scores", scores)
    theirs = of.below("state_dict/")
    if not theirs:
        return
    # A recording may keep some bands alone: what they give depends on no other, but at their edges.
    bands = [
        {
            int(found[1])
            for key in theirs
            if (found := re.match(rf"discriminators\.{i}\.band_convs\.(\d+)", key))
        }
        for i in range(len(real))
    ]
    width = theirs["discriminators.0.conv_post.weight_v"].shape[1] / 32
    judge = WaveDiscriminator((), RESOLUTIONS[: len(real)], width).eval()
    unkept = to_released({"discriminator": judge}, discriminator_converter())

    def forward() -> Checks:
        scores_r, features_r = judge(of["y"])
        scores_g, features_g = judge(of["y_hat"])
        for i, (ours_r, ours_g) in enumerate(zip(scores_r, scores_g, strict=True)):
            known = known_columns(features_r[i], bands[i])
            yield Check(
                f"scores {i} of real", ours_r[..., known], real[i].reshape(ours_r.shape)[..., known], 1e-4
            )
            yield Check(
                f"scores {i} of made", ours_g[..., known], fake[i].reshape(ours_g.shape)[..., known], 1e-4
            )
        kept_r, kept_g = (
            [[maps[n] for n in known_maps(bands[i])] for i, maps in enumerate(features)]
            for features in (features_r, features_g)
        )
        others = of.tensors.get("losses/fm_others", 0.0)  # what the maps of bands that are not kept add
        yield Check("feature matching", feature_matching_loss(kept_r, kept_g) + others, of["losses/fm"], 1e-4)

    yield there_and_back({"discriminator": judge}, {**unkept, **theirs}, discriminator_converter())
    yield Case("disc waveform to scores", forward)


def known_maps(bands: set[int]) -> list[int]:
    """Which feature maps of a resolution these bands give: theirs, and the scores if they are all."""
    maps = [MAPS_OF_BAND * band + depth for band in sorted(bands) for depth in range(MAPS_OF_BAND)]
    return [*maps, MAPS_OF_BAND * len(BANDS)] if len(bands) == len(BANDS) else maps


def known_columns(features: list[Tensor], bands: set[int]) -> Tensor:
    """Which columns of a resolution's scores these bands give: a score sees the columns on either side."""
    widths = [maps.shape[-1] for maps in features[MAPS_OF_BAND - 1 : -1 : MAPS_OF_BAND]]
    edge = [torch.ones(1, dtype=torch.bool)]
    known = torch.cat(
        [*edge, *(torch.full((width,), band in bands) for band, width in enumerate(widths)), *edge]
    )
    return known[:-2] & known[1:-1] & known[2:]
