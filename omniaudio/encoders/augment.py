"""SpecAugment's time masks (arXiv:1904.08779 section 2), drawn for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from omniaudio.draws import Draws, frame_places, key_places, mixed
from omniaudio.types import valid_steps


def mask_time(
    mel_BMT: Tensor,
    mel_len_B: Tensor,
    share: float,
    span: int,
    draws: Draws | None = None,
    keys: Sequence[str] | None = None,
) -> Tensor:
    """Set random spans of frames to zero; every valid frame begins one with probability share / span.

    Args:
        mel_BMT: (B, M, T) log-mel.
        mel_len_B: valid frames.
        share: expected share of frames that lie in a mask, if masks did not overlap; 0 masks none.
        span: frames of a mask.
        draws: random numbers of the step; None draws them from torch's generator.
        keys: of the items: an item has the same masks in a step wherever it stands. None goes by the place.

    Returns:
        (B, M, T).
    """
    if share == 0:
        return mel_BMT
    num_frames = mel_BMT.shape[-1]
    place_BT = frame_places(len(mel_BMT), num_frames, mel_BMT.device)
    if keys is not None:
        frame_T = torch.arange(num_frames, device=mel_BMT.device)
        place_BT = mixed(key_places(keys, mel_BMT.device)[:, None] ^ frame_T, 0)
    begins_BT = (draws or Draws.fresh()).uniform("mask", place_BT) < share / span
    begins_BT = begins_BT & valid_steps(mel_len_B, num_frames)
    spread_B1T = functional.pad(begins_BT[:, None].to(mel_BMT.dtype), (span - 1, 0))
    return mel_BMT * (1 - functional.max_pool1d(spread_B1T, span, stride=1))
