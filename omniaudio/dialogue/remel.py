"""Read one log-mel as another, without a waveform between: so that a vocoder can speak the tokenizer's mel.

A mel of natural logarithms is the magnitude spectrum, averaged under triangles of equal area. Its powers are
interpolated in time at the centres of the other's frames and in frequency at the centres of the other's
triangles. What is left is one constant: for a noise-like signal the magnitude grows with
sqrt(window length x sample rate), and a triangle of equal area sums over n_fft / sample rate times as many
bins. From 16 kHz (1024/256) to 24 kHz (1920/480), on recorded speech, this is 0.07 from the mel of the
resampled waveform (mean absolute error of the logarithm).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec

FLOOR = math.log(1e-5)  # LogMel's clamp


def remel(mel_BMT: Tensor, mel_len_B: Tensor, source: MelSpec, target: MelSpec) -> tuple[Tensor, Tensor]:
    """Log-mel of ``source`` to log-mel of ``target``.

    Args:
        mel_BMT: natural log-mel, mel_len_B frames valid.

    Returns:
        mel_BMT at ``target`` (0 past an item's end), mel_len_B: as many whole frames as the items' time holds.
    """
    if (source.log, target.log) != ("ln", "ln"):
        raise UserError(
            f"mels of {source.log!r} and {target.log!r} do not convert; both must be natural logarithms"
        )
    power_BMT = _mel_axis((2 * mel_BMT.double()).exp(), source, target)
    num_samples_B = (mel_len_B - (1 if source.center else 0)) * source.hop * target.sample_rate_hz
    out_len_B = target.num_frames(torch.div(num_samples_B, source.sample_rate_hz, rounding_mode="floor"))
    items = [
        _time_axis(power_MT[:, : int(length)], int(out_length), source, target)
        for power_MT, length, out_length in zip(power_BMT, mel_len_B, out_len_B, strict=True)
    ]
    rows = [
        (0.5 * item.log() + math.log(_gain(source, target))).clamp(min=FLOOR).to(mel_BMT) for item in items
    ]
    padded_BTM = torch.nn.utils.rnn.pad_sequence([row.T for row in rows], batch_first=True)
    return padded_BTM.transpose(1, 2).contiguous(), out_len_B


def _gain(source: MelSpec, target: MelSpec) -> float:
    noise = math.sqrt(target.win * target.sample_rate_hz / (source.win * source.sample_rate_hz))
    bins = (target.n_fft / target.sample_rate_hz) / (source.n_fft / source.sample_rate_hz)
    return noise * bins


def _time_axis(power_MT: Tensor, num_frames: int, source: MelSpec, target: MelSpec) -> Tensor:
    """Linear interpolation at the centres of the target's frames."""
    frames = torch.arange(num_frames, dtype=torch.float64, device=power_MT.device)
    seconds = (frames * target.hop + _first_centre(target)) / target.sample_rate_hz
    place = (seconds * source.sample_rate_hz - _first_centre(source)) / source.hop
    return _interpolated(power_MT, place)


def _first_centre(spec: MelSpec) -> float:
    """Sample at the centre of frame 0."""
    return 0.0 if spec.center else spec.hop / 2


def _mel_axis(power_BMT: Tensor, source: MelSpec, target: MelSpec) -> Tensor:
    """Linear interpolation at the centres of the target's triangles; silence above what the source holds."""
    bands = [(spec.num_mels, spec.fmin_hz, spec.fmax_hz) for spec in (source, target)]
    if bands[0] == bands[1]:
        return power_BMT
    centres = [_centres_mel(spec) for spec in (source, target)]
    step = centres[0][1] - centres[0][0]
    place = (centres[1] - centres[0][0]).to(power_BMT.device) / step
    inside = place <= source.num_mels - 0.5
    return _interpolated(power_BMT.transpose(1, 2), place).transpose(1, 2) * inside[:, None]


def _centres_mel(spec: MelSpec) -> Tensor:
    """Centres of the triangles on the slaney scale, evenly spaced."""
    low, high = (
        hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)
        for hz in (spec.fmin_hz, spec.fmax_hz)
    )
    return torch.linspace(low, high, spec.num_mels + 2, dtype=torch.float64)[1:-1]


def _interpolated(values: Tensor, place: Tensor) -> Tensor:
    """``values`` at fractional indices of its last axis; the ends hold beyond themselves."""
    last = values.shape[-1] - 1
    place = place.clamp(0, last)
    below = place.floor().long().clamp(max=max(last - 1, 0))
    share = place - below
    return values[..., below] * (1 - share) + values[..., (below + 1).clamp(max=last)] * share
