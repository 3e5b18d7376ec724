"""Mel distance: by hand, zero for equal mels, padding, the wide scale."""

import math

import pytest
import torch

from omniaudio.losses.mel import SCALES, MelScale, mel_distance, pooled


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.name)
def test_equal_mels_have_no_distance(scale: MelScale) -> None:
    mel_BMT = torch.randn(2, 4, 12)
    total, count = mel_distance(mel_BMT, mel_BMT.clone(), torch.tensor([12, 9]), scale)
    assert total == 0
    assert count == {"fine": 21, "wide": 4 + 3}[scale.name]


def test_fine_scale_by_hand() -> None:
    target_BMT = torch.zeros(1, 2, 3)
    predicted_BMT = torch.tensor([[[1.0, -2.0, 99.0], [0.0, 0.5, 99.0]]])
    total, count = mel_distance(predicted_BMT, target_BMT, torch.tensor([2]))
    assert total == ((1 + 1) + (2 + 4) + (0.5 + 0.25)) / 2
    assert count == 2


def test_wide_scale_averages_magnitudes() -> None:
    mel_BMT = torch.tensor([[[1.0, 3.0, 2.0, 6.0, 5.0, 7.0]]]).log()
    wide_BMT, length_B = pooled(mel_BMT, torch.tensor([5]), MelScale("wide", frames=3, stride=2))
    torch.testing.assert_close(wide_BMT.exp(), torch.tensor([[[2.0, 13 / 3]]]))
    assert length_B.tolist() == [2]
    assert math.isfinite(float(pooled(mel_BMT + 1000, length_B, SCALES[1])[0].sum()))


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.name)
def test_padding_changes_nothing(scale: MelScale) -> None:
    torch.manual_seed(0)
    predicted_BMT, target_BMT = torch.randn(2, 4, 20), torch.randn(2, 4, 23)
    length_B = torch.tensor([17, 4])
    total, count = mel_distance(predicted_BMT, target_BMT, length_B, scale)
    parts = [
        mel_distance(
            predicted_BMT[i : i + 1, :, :n], target_BMT[i : i + 1, :, :n], length_B[i : i + 1], scale
        )
        for i, n in enumerate(length_B.tolist())
    ]
    torch.testing.assert_close(total, parts[0][0] + parts[1][0])
    assert count == parts[0][1] + parts[1][1]


def test_only_the_bins_with_sound_count() -> None:
    """Whatever stands in the others; every item's frame weighs alike, however many of its bins count."""
    predicted_BMT, target_BMT = torch.randn(2, 6, 9), torch.randn(2, 6, 9)
    length_B, bins_BM = torch.tensor([9, 7]), torch.arange(6) < torch.tensor([[6], [2]])
    for scale in SCALES:
        total, count = mel_distance(predicted_BMT, target_BMT, length_B, scale, bins_BM)
        whole = mel_distance(predicted_BMT[:1], target_BMT[:1], length_B[:1], scale)
        part = mel_distance(predicted_BMT[1:, :2], target_BMT[1:, :2], length_B[1:], scale)
        torch.testing.assert_close(total, whole[0] + part[0])
        assert int(count) == int(whole[1] + part[1])
        every = mel_distance(predicted_BMT, target_BMT, length_B, scale, torch.ones(2, 6, dtype=torch.bool))
        torch.testing.assert_close(every, mel_distance(predicted_BMT, target_BMT, length_B, scale))
