"""Waveform to log-mel. ``MelSpec`` owns every number of a mel; others read them from it.

Shapes: B batch, N samples, T mel frames, M mel bins, P padded samples, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.types import valid_steps

WHISPER_CLIP_SEC = 30
LOGS = ("whisper", "ln")


@dataclass(frozen=True)
class MelSpec:
    """All numbers of one log-mel.

    Args:
        n_fft, hop, win: samples; ``win`` is the Hann window, centred in ``n_fft``.
        num_mels, fmin_hz, fmax_hz: slaney-scale, area-normalised triangles.
        log: ``whisper``: log10 of the power, at least 1e-10, floored 8 below the clip's maximum,
            (x + 4) / 4, as if the clip were padded with zeros to 30 s. ``ln``: natural log of the magnitude,
            at least 1e-5.
        center: True pads ``n_fft / 2`` on both sides and gives N // hop + 1 frames (whisper: at most 3000);
            False pads ``(n_fft - hop) / 2`` and gives N // hop frames. Padding mirrors the item's own ends.
    """

    sample_rate_hz: int
    n_fft: int
    hop: int
    win: int
    num_mels: int
    fmin_hz: float
    fmax_hz: float
    log: str
    center: bool

    def __post_init__(self) -> None:
        if self.fmax_hz > self.sample_rate_hz / 2:
            raise UserError(
                f"MelSpec: fmax_hz {self.fmax_hz} is above half of sample_rate_hz {self.sample_rate_hz}; "
                f"at most {self.sample_rate_hz / 2} is allowed"
            )
        if not 0 <= self.fmin_hz < self.fmax_hz:
            raise UserError(f"MelSpec: fmin_hz {self.fmin_hz} must be in [0, fmax_hz {self.fmax_hz})")
        if not 0 < self.hop <= self.win <= self.n_fft:
            raise UserError(
                f"MelSpec: hop {self.hop}, win {self.win}, n_fft {self.n_fft} must satisfy "
                f"0 < hop <= win <= n_fft"
            )
        if self.log not in LOGS:
            raise UserError(f"MelSpec: log {self.log!r} is not one of {', '.join(LOGS)}")
        if self.log == "whisper" and not self.center:
            raise UserError("MelSpec: log 'whisper' needs center true")
        if self.num_mels < 1:
            raise UserError(f"MelSpec: num_mels {self.num_mels} must be positive")

    @property
    def mel_rate_hz(self) -> float:
        """Frames a second."""
        return self.sample_rate_hz / self.hop

    @property
    def pad(self) -> int:
        """Samples of padding on each side before the transform."""
        return self.n_fft // 2 if self.center else (self.n_fft - self.hop) // 2

    @property
    def min_samples(self) -> int:
        """Shortest item that has a mel."""
        return self.n_fft if self.log == "whisper" else self.pad + 1

    @property
    def max_samples(self) -> int | None:
        """Longest item, or None without a limit."""
        return WHISPER_CLIP_SEC * self.sample_rate_hz if self.log == "whisper" else None

    def num_frames(self, num_samples: Any) -> Any:
        """Frames of an item of so many samples; int to int, tensor to tensor."""
        frames = num_samples // self.hop + (1 if self.center else 0)
        if self.max_samples is None:
            return frames
        most = self.max_samples // self.hop
        return frames.clamp(max=most) if isinstance(frames, Tensor) else min(most, frames)

    def bins_within(self, band_hz_B: Tensor) -> Tensor:
        """(B, M) True for the bins that lie below a frequency, their upper slope included."""
        upper_M = torch.from_numpy(_edges(self)[2:]).to(band_hz_B.device)
        within_BM: Tensor = upper_M <= band_hz_B[:, None] + 1e-6 * self.sample_rate_hz
        return within_BM

    def facts(self) -> dict[str, Any]:
        """The spec as a plain mapping, for fingerprints."""
        return dict(vars(self))


def _edges(spec: MelSpec) -> np.ndarray:
    """Frequencies (M + 2,) where the triangles begin, peak and end."""

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))

    def to_mel(hz: float) -> float:
        return hz * 3.0 / 200.0 if hz < 1000.0 else float(15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4))

    return to_hz(np.linspace(to_mel(spec.fmin_hz), to_mel(spec.fmax_hz), spec.num_mels + 2))


def slaney_filters(spec: MelSpec) -> Tensor:
    """Triangular filters on the slaney mel scale (linear to 1 kHz, logarithmic above), each of equal area.

    Returns:
        (n_fft // 2 + 1, num_mels) float32.
    """
    edges = _edges(spec)
    bins = np.linspace(0.0, spec.sample_rate_hz / 2, spec.n_fft // 2 + 1)
    width = np.diff(edges)
    rising = (bins[:, None] - edges[None, :-2]) / width[None, :-1]
    falling = (edges[None, 2:] - bins[:, None]) / width[None, 1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return torch.from_numpy(triangles * (2.0 / (edges[2:] - edges[:-2]))[None, :]).float()


class LogMel(nn.Module):
    """Waveforms to log-mels; an item has the same mel alone and in any padded batch."""

    window: Tensor
    filters: Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("window", None, persistent=False)
        self.register_buffer("filters", None, persistent=False)
        self._fill_buffers(None)

    def _fill_buffers(self, device: torch.device | None) -> None:
        self.window = torch.hann_window(self.spec.win, device=device)
        self.filters = slaney_filters(self.spec).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogMel:
        """Moves go through; the numbers stay fp32, also where weights become bf16 or come from ``meta``."""
        super()._apply(fn, recurse)
        self._fill_buffers(self.window.device)
        return self

    def forward(self, wav_BN: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mels of a zero-padded batch.

        Args:
            wav_BN: float in [-1, 1] at ``spec.sample_rate_hz``; what lies past an item's end is ignored.
            num_samples_B: int64 true lengths.

        Returns:
            mel_BMT float32 (0 past an item's end) and mel_len_B = ``spec.num_frames(num_samples_B)``.
        """
        self._check(wav_BN, num_samples_B)
        with torch.autocast(wav_BN.device.type, enabled=False):
            return self._forward(wav_BN, num_samples_B)

    def _forward(self, wav_BN: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        spec = self.spec
        mel_len_B = spec.num_frames(num_samples_B)
        padded_BP = self._pad(wav_BN.float(), num_samples_B)
        spectrum_BFT = torch.stft(
            padded_BP,
            n_fft=spec.n_fft,
            hop_length=spec.hop,
            win_length=spec.win,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power_BFT = spectrum_BFT.real.square() + spectrum_BFT.imag.square()
        mel_BMT = self._whisper_log(power_BFT) if spec.log == "whisper" else self._natural_log(power_BFT)
        mel_BMT = mel_BMT[..., : int(mel_len_B.max())]
        return mel_BMT * valid_steps(mel_len_B, mel_BMT.shape[-1])[:, None, :], mel_len_B

    def _whisper_log(self, power_BFT: Tensor) -> Tensor:
        power_BFT = power_BFT[..., : WHISPER_CLIP_SEC * self.spec.sample_rate_hz // self.spec.hop]
        log_BMT = torch.log10(self._mel(power_BFT).clamp(min=1e-10))
        floor_B11 = log_BMT.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(log_BMT, floor_B11) + 4.0) / 4.0

    def _natural_log(self, power_BFT: Tensor) -> Tensor:
        return torch.log(self._mel(torch.sqrt(power_BFT + 1e-9)).clamp(min=1e-5))

    def _mel(self, spectrum_BFT: Tensor) -> Tensor:
        return torch.einsum("fm,bft->bmt", self.filters, spectrum_BFT)

    def _pad(self, wav_BN: Tensor, num_samples_B: Tensor) -> Tensor:
        """Mirror each item at its own ends; for whisper at 30 s, with zeros from the item's end to there."""
        spec = self.spec
        # whisper's maximum also sees the frames past the last valid one that still touch the item
        extra = spec.n_fft + 2 * spec.hop if spec.log == "whisper" else 0
        length = int(num_samples_B.max()) + 2 * spec.pad + extra
        place_P = torch.arange(length, device=wav_BN.device) - spec.pad
        end_B1 = (
            torch.full_like(num_samples_B, spec.max_samples)[:, None]
            if spec.max_samples
            else num_samples_B[:, None]
        )
        source_BP = torch.where(place_P < end_B1, place_P.abs(), 2 * (end_B1 - 1) - place_P)
        inside_BP = (source_BP >= 0) & (source_BP < num_samples_B[:, None])
        taken_BP = torch.gather(wav_BN, 1, source_BP.clamp(0, wav_BN.shape[1] - 1))
        return torch.where(inside_BP, taken_BP, taken_BP.new_zeros(()))

    def _check(self, wav_BN: Tensor, num_samples_B: Tensor) -> None:
        spec = self.spec
        assert wav_BN.ndim == 2 and num_samples_B.shape == wav_BN.shape[:1], (
            wav_BN.shape,
            num_samples_B.shape,
        )
        shortest, longest = int(num_samples_B.min()), int(num_samples_B.max())
        assert longest <= wav_BN.shape[1], (longest, wav_BN.shape)
        if shortest < spec.min_samples:
            raise UserError(
                f"audio of {shortest} samples at {spec.sample_rate_hz} Hz is too short for a mel; "
                f"at least {spec.min_samples} samples are needed"
            )
        if spec.max_samples is not None and longest > spec.max_samples:
            raise UserError(
                f"audio of {longest} samples is longer than the {WHISPER_CLIP_SEC} s that the encoder's mel "
                f"reads ({spec.max_samples} samples); cut it into chunks"
            )
