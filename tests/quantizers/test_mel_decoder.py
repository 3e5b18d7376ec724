"""Mel decoder: lengths, causality, an item alone and in a batch, the starting level."""

import pytest
import torch
from torch.nn import functional

from omniaudio.quantizers.mel_decoder import CumulativeNorm, MaskedGroupNorm, MelDecoder


def make_decoder(**sizes: float) -> MelDecoder:
    torch.manual_seed(0)
    return MelDecoder(
        width=16, num_mels=5, num_layers=2, num_heads=2, ffn_width=32, refine_width=8, max_frames=100,
        **sizes,  # type: ignore[arg-type]
    ).eval()  # fmt: skip


def test_lengths() -> None:
    decoder = make_decoder()
    num_frames_B = torch.tensor([25, 15, 1, 0])
    assert decoder.hidden_length(num_frames_B).tolist() == [99, 59, 3, 0]
    assert decoder.mel_length(num_frames_B).tolist() == [123, 73, 3, 0]
    assert decoder.max_codes == 25
    output = decoder(torch.randn(4, 25, 16), num_frames_B)
    assert output.coarse_BMT.shape == output.refined_BMT.shape == (4, 5, 123)
    assert output.hidden_BTD.shape == (4, 99, 16)
    with pytest.raises(ValueError, match="takes 25 at most"):
        decoder(torch.randn(1, 26, 16), torch.tensor([26]))


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_an_item_decodes_alike_alone_and_beside_a_longer_one(num_frames: int) -> None:
    decoder = make_decoder()
    emb_BSD = torch.randn(2, 11, 16) * 3  # beyond the valid frames: rubbish that must not matter
    batch = decoder(emb_BSD, torch.tensor([11, num_frames]))
    alone = decoder(emb_BSD[1:, :num_frames], torch.tensor([num_frames]))
    mel_len, hidden_len = int(alone.mel_len_B), int(alone.hidden_len_B)
    for name in ("coarse_BMT", "refined_BMT"):
        ours = getattr(batch, name)[1]
        torch.testing.assert_close(ours[:, :mel_len], getattr(alone, name)[0], atol=1e-5, rtol=1e-5)
        assert ours[:, mel_len:].abs().sum() == 0
    torch.testing.assert_close(batch.hidden_BTD[1, :hidden_len], alone.hidden_BTD[0], atol=1e-5, rtol=1e-5)


def test_transformer_part_is_causal() -> None:
    """GroupNorm sees the whole item, so causality is tested behind it."""
    layers = make_decoder().layers
    x_BTD = torch.randn(1, 6, 16, requires_grad=True)
    y_BTD = x_BTD
    for layer in layers:
        y_BTD = layer(y_BTD)
    y_BTD[0, 2].sum().backward()
    assert x_BTD.grad is not None
    assert (x_BTD.grad[0].abs().sum(-1) > 0).tolist() == [True] * 3 + [False] * 3


def test_masked_group_norm_without_padding_is_torchs() -> None:
    torch.manual_seed(0)
    norm = MaskedGroupNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x_BCT = torch.randn(2, 6, 9) + 3
    expected = functional.group_norm(x_BCT, 1, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x_BCT, torch.ones(2, 1, 9, dtype=torch.bool)), expected)


def test_coarse_mel_starts_at_the_given_level() -> None:
    output = make_decoder(mel_mean=-6.0, mel_std=2.0)(torch.randn(2, 20, 16), torch.tensor([20, 20]))
    assert abs(float(output.coarse_BMT.detach().mean()) + 6) < 0.2
    assert abs(float(output.coarse_BMT.detach().std()) - 2) < 0.2


def test_cumulative_norm_is_torchs_over_the_frames_so_far() -> None:
    torch.manual_seed(0)
    norm = CumulativeNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x_BCT = torch.randn(2, 6, 9) + 3
    valid_B1T = torch.arange(9)[None, None] < torch.tensor([9, 4])[:, None, None]
    y_BCT = norm(x_BCT, valid_B1T)
    for t in range(9):
        expected = functional.group_norm(x_BCT[:, :, : t + 1], 1, norm.weight, norm.bias)[..., t]
        torch.testing.assert_close(y_BCT[0, :, t], expected[0], atol=1e-5, rtol=1e-5)
        if t < 4:
            torch.testing.assert_close(y_BCT[1, :, t], expected[1], atol=1e-5, rtol=1e-5)
    assert y_BCT[1, :, 4:].abs().max() == 0
