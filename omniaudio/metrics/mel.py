"""How far a mel spectrogram is from its original."""

from __future__ import annotations

import torch
from torch import Tensor

from omniaudio.types import valid_steps


def mel_mae(
    x_hat_BMT: Tensor, x_BMT: Tensor, mel_len_B: Tensor, bins_BM: Tensor | None = None
) -> tuple[float, int]:
    """Mean absolute error of log-mel values over valid frames (arXiv:2502.17239, table 2).

    Args:
        x_hat_BMT: predicted log-mel; longer than the reference is cut, shorter is an error of the caller.
        x_BMT: reference log-mel.
        mel_len_B: frames of each row to compare.
        bins_BM: True for the bins to compare; None compares all.

    Returns:
        (sum of absolute errors over valid values, their count), so that batches add up exactly.
    """
    num_frames = int(mel_len_B.max())
    assert min(x_hat_BMT.shape[-1], x_BMT.shape[-1]) >= num_frames, (x_hat_BMT.shape, x_BMT.shape, num_frames)
    if bins_BM is None:
        bins_BM = torch.ones(x_BMT.shape[:2], dtype=torch.bool, device=x_BMT.device)
    valid_BMT = valid_steps(mel_len_B, num_frames)[:, None, :] & bins_BM[..., None]
    error_BMT = (x_hat_BMT[..., :num_frames].float() - x_BMT[..., :num_frames].float()).abs()
    total = torch.where(valid_BMT, error_BMT, 0.0).sum(dtype=torch.float64)
    return float(total), int((mel_len_B * bins_BM.sum(1)).sum())
