"""Flow decoder and vocoder against recordings of the reference at small width and random weights.

tests/golden/flow.safetensors holds the U-Net alone (233 frames, past two borders of attention chunks) and a
training loss with given draws; tokenizer.safetensors holds hidden states -> prenet -> mel with given noise;
vocoder.safetensors a HiFT generator with a given excitation. All float32 on CPU.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.frontend.mel import MelSpec
from omniaudio.training.artifacts import load_state
from omniaudio.vocoders.hift import HiFT
from tests.parity.reference_names_acoustic import flow_name, hift_name

GOLDEN = Path(__file__).parent.parent / "golden"
SPEC = MelSpec(24000, 1920, 480, 1920, 80, 0.0, 8000.0, "ln", False)


def state_of(
    golden: dict[str, Tensor], prefix: str, rename: Callable[[str], str | None]
) -> dict[str, Tensor]:
    names = {key: rename(key.removeprefix(prefix)) for key in golden if key.startswith(prefix)}
    state = {name: golden[key] for key, name in names.items() if name is not None}
    assert len(state) == sum(name is not None for name in names.values())
    return state


def new_flow() -> FlowMatchingDecoder:
    prenet = Prenet(32, 128, 32, 2, 4, 64, 80)
    return FlowMatchingDecoder(SPEC, prenet, ConditionalUNet(80, 32, 2, 2, 4, 8, 128), 50.0).eval()


@pytest.fixture(scope="module")
def unet_golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "flow.safetensors")


@pytest.fixture(scope="module")
def flow(unet_golden: dict[str, Tensor]) -> FlowMatchingDecoder:
    flow = new_flow()
    state = state_of(unet_golden, "state_dict/", flow_name)
    load_state(flow.estimator, {k.removeprefix("estimator."): v for k, v in state.items()}, "golden")
    return flow


@torch.no_grad()
def test_velocity_of_one_step(flow: FlowMatchingDecoder, unet_golden: dict[str, Tensor]) -> None:
    x, mu, t, y = (unet_golden[f"unet/{name}"] for name in ("x", "mu", "t", "y"))
    valid_BT = unet_golden["mask"][:1, 0].bool()
    torch.testing.assert_close(flow.estimator(x, mu, t, valid_BT), y, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_training_loss_with_given_draws(flow: FlowMatchingDecoder, unet_golden: dict[str, Tensor]) -> None:
    x1, mu, z, keep_B = (unet_golden[f"loss/{name}"] for name in ("x1", "mu", "z", "cfg_keep"))
    valid_BT = unet_golden["mask"][:, 0].bool()
    time_B = 1 - torch.cos(unet_golden["loss/t_uniform"].flatten() * math.pi / 2)
    total = flow.velocity_error(x1, mu, valid_BT, z, time_B, keep_B)
    torch.testing.assert_close(total / (80 * valid_BT.sum()), unet_golden["loss/loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["b1", "b1_short", "b2"])
@torch.no_grad()
def test_hidden_states_to_mel(case: str) -> None:
    golden = load_file(GOLDEN / "tokenizer.safetensors")
    flow = new_flow()
    load_state(flow, state_of(golden, "state_dict/audio_flow_matching_decoder.", flow_name), "golden")
    of = {key.rpartition("/")[2]: value for key, value in golden.items() if key.startswith(f"cases/{case}/")}
    hidden_len_B = of["len_before_dconv2"].long()
    packed = of["hidden_before_dconv2_packed"].split(hidden_len_B.tolist())
    hidden_BTD = torch.nn.utils.rnn.pad_sequence(list(packed), batch_first=True)
    mu = flow.prenet(hidden_BTD, hidden_len_B, flow.mel_length(hidden_len_B))
    mel, mel_len_B = flow.decode(hidden_BTD, hidden_len_B, num_steps=10, guidance=0.7, noise=of["fm_noise"])
    assert mel_len_B.tolist() == of["fm_mel_len"].tolist()
    for item, length in enumerate(mel_len_B.tolist()):
        expected = (of["prenet_out"][item, :length].T, of["fm_mel"][item, :length].T)
        torch.testing.assert_close(mu[item, :, :length], expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mel[item, :, :length], expected[1], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_hift() -> None:
    golden = load_file(GOLDEN / "vocoder.safetensors")
    of = json.loads((GOLDEN / "vocoder.json").read_text())
    source = {
        "num_harmonics": of["init_kwargs/nb_harmonics"],
        "sine_amplitude": of["init_kwargs/nsf_alpha"],
        "noise_std": of["init_kwargs/nsf_sigma"],
        "voiced_threshold_hz": of["init_kwargs/nsf_voiced_threshold"],
    }
    hift = HiFT(
        SPEC,
        of["init_kwargs/base_channels"],
        of["init_kwargs/upsample_rates"],
        of["init_kwargs/upsample_kernel_sizes"],
        of["init_kwargs/resblock_kernel_sizes"],
        [of[f"init_kwargs/resblock_dilation_sizes/{i}"] for i in range(3)],
        of["init_kwargs/source_resblock_kernel_sizes"],
        of["f0_kwargs/cond_channels"],
        16,
        4,
        source,
    ).eval()
    load_state(hift, state_of(golden, "state_dict/", hift_name), "golden")
    torch.testing.assert_close(hift.f0_predictor(golden["mel"]), golden["f0"], atol=1e-4, rtol=1e-5)
    wav_BN = hift.filter(golden["mel"], golden["source"][:, 0])
    torch.testing.assert_close(wav_BN, golden["wav"], atol=1e-4, rtol=1e-4)
