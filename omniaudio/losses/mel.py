"""Distance of log-mels: L1 + L2 at several scales of time.

Source: arXiv:2502.17239 section 3.1 (L1 and L2 on coarse and refined mel, at two hop and window scales).
Our reading: the decoder writes one mel, so the second scale is made from it. Averaging the magnitudes of
``frames`` neighbours every ``stride`` frames gives a mel of hop x stride and of window + (frames - 1) x hop
samples; both sides go through the same averaging, so equal mels have distance 0 at every scale. For hop 256
and window 1024 the default second scale is hop 512 and window 2048.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from omniaudio.types import valid_steps

LOUDEST = 12.0
"""Log-mel above which a prediction is clipped before the exponential (speech stays below 5)."""

FLOOR = 1e-5


@dataclass(frozen=True)
class MelScale:
    """One scale of time: an average over ``frames`` frames, every ``stride`` frames."""

    name: str
    frames: int = 1
    stride: int = 1


SCALES = (MelScale("fine"), MelScale("wide", frames=5, stride=2))


def pooled(mel_BMT: Tensor, mel_len_B: Tensor, scale: MelScale) -> tuple[Tensor, Tensor]:
    """Natural-log mel at another scale, and its lengths; only windows inside an item count."""
    if scale.frames == 1 and scale.stride == 1:
        return mel_BMT, mel_len_B
    missing = max(0, scale.frames - mel_BMT.shape[-1])
    magnitude_BMT = functional.pad(mel_BMT.clamp(max=LOUDEST).exp(), (0, missing))
    pooled_BMT = functional.avg_pool1d(magnitude_BMT, scale.frames, scale.stride)
    return pooled_BMT.clamp(min=FLOOR).log(), pooled_length(mel_len_B, scale)


def pooled_length(mel_len_B: Tensor, scale: MelScale) -> Tensor:
    """Frames that another scale has of so many."""
    return (mel_len_B - scale.frames).div(scale.stride, rounding_mode="floor").add(1).clamp(min=0)


def mel_distance(
    predicted_BMT: Tensor,
    target_BMT: Tensor,
    mel_len_B: Tensor,
    scale: MelScale = SCALES[0],
    bins_BM: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over valid frames of |d| + d^2 (each the mean over mel bins), and the number of these frames.

    Args:
        predicted_BMT, target_BMT: natural-log mels; frames beyond ``mel_len_B`` are ignored, and either may
            have more of them.
        mel_len_B: valid frames of both.
        scale: see MelScale.
        bins_BM: True for the bins that count, at least one an item; None counts all. Where a recording has no sound
            (above half of its own sample rate) its log-mel is the noise of rounding, which nobody should learn.
    """
    num_frames = int(mel_len_B.max())
    predicted, length_B = pooled(predicted_BMT[..., :num_frames].float(), mel_len_B, scale)
    target, _ = pooled(target_BMT[..., :num_frames].float(), mel_len_B, scale)
    difference_BMT = (predicted - target) * valid_steps(length_B, predicted.shape[-1])[:, None]
    error_BMT = difference_BMT.abs() + difference_BMT.square()
    if bins_BM is None:
        return error_BMT.sum() / predicted.shape[1], length_B.sum()
    share_BM = bins_BM / bins_BM.sum(1, keepdim=True).clamp(min=1)
    return (error_BMT.sum(-1) * share_BM).sum(), length_B.sum()
