"""How far a mel spectrogram is from its original."""

from __future__ import annotations

import torch
from torch import Tensor

from omniaudio.types import valid_steps


def mel_mae(x_hat_BMT: Tensor, x_BMT: Tensor, mel_len_B: Tensor) -> tuple[float, int]:
    """Mean absolute error of log-mel values over valid frames (arXiv:2502.17239, table 2).

    Args:
        x_hat_BMT: predicted log-mel; longer than the reference is cut, shorter is an error of the caller.
        x_BMT: reference log-mel.
        mel_len_B: frames of each row to compare.

    Returns:
        (sum of absolute errors over valid values, their count), so that batches add up exactly.
    """
    num_frames = int(mel_len_B.max())
    assert min(x_hat_BMT.shape[-1], x_BMT.shape[-1]) >= num_frames, (x_hat_BMT.shape, x_BMT.shape, num_frames)
    valid_B1T = valid_steps(mel_len_B, num_frames)[:, None, :]
    error_BMT = (x_hat_BMT[..., :num_frames].float() - x_BMT[..., :num_frames].float()).abs()
    total = torch.where(valid_B1T, error_BMT, 0.0).sum(dtype=torch.float64)
    return float(total), int(mel_len_B.sum()) * x_BMT.shape[1]
