"""What the flow's velocity estimators share: their interface, the time's embedding, chunks of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniaudio.acoustic.timbre import Timbre
from omniaudio.errors import UserError
from omniaudio.past import Past


@dataclass(frozen=True)
class Chunks:
    """How attention cuts a mel: the first ``first`` frames, then every ``size`` frames."""

    first: int
    size: int

    def __post_init__(self) -> None:
        if self.first < 1 or self.size < 1:
            raise UserError(f"flow: chunks of {self.first} and {self.size} frames; at least 1 each")

    def ends(self, frame_T: Tensor) -> Tensor:
        """First frame after the chunk of each frame."""
        later_T = (frame_T - self.first).div(self.size, rounding_mode="floor") + 1
        return self.first + self.size * later_T.clamp(min=0)


def chunk_visible(valid_BT: Tensor, chunks: Chunks, look_back: int | None = None) -> Tensor:
    """What each frame may attend to: its own chunk and what is before it, never padding.

    Args:
        valid_BT: True at valid frames.
        chunks: where they lie.
        look_back: frames before its chunk that a frame sees; None: all.

    Returns:
        (B, 1, T, T), True where query (third axis) sees key (fourth axis).
    """
    frame_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
    end_T = chunks.ends(frame_T)
    visible_TT = frame_T[None, :] < end_T[:, None]
    if look_back is not None:
        begin_T = torch.where(end_T > chunks.first, end_T - chunks.size, 0)
        visible_TT = visible_TT & (frame_T[None, :] >= begin_T[:, None] - look_back)
    return visible_TT[None, None] & valid_BT[:, None, None, :]


class TimeEmbedding(nn.Module):
    """Flow time in [0, 1] to a vector: sinusoids of 1000 t, then an MLP."""

    def __init__(self, num_sinusoids: int, width: int) -> None:
        super().__init__()
        half = num_sinusoids // 2
        rates = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        self.rates: Tensor
        self.register_buffer("rates", rates, persistent=False)
        self.linear_1 = nn.Linear(num_sinusoids, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, time_B: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        angle = 1000.0 * time_B[:, None] * self.rates[None]
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.sin(), angle.cos()], dim=-1))))


class Estimator(nn.Module):
    """Velocity of a mel on its way from noise to speech.

    Args:
        num_mels: M of the mel.
        chunk_frames: attention sees its own chunk of this many frames, and what is before it.
        look_back: frames before its chunk that attention sees; None, as published: all.
        timbre: makes the condition; None, as published: it is the guess of the mel alone.
    """

    def __init__(
        self, num_mels: int, chunk_frames: int, look_back: int | None, timbre: Timbre | None
    ) -> None:
        super().__init__()
        self.num_mels, self.chunk_frames, self.look_back = num_mels, chunk_frames, look_back
        self.timbre = timbre or Timbre(num_mels)
        if self.timbre.num_mels != num_mels:
            raise UserError(f"timbre.num_mels is {self.timbre.num_mels}, flow.estimator.num_mels {num_mels}")

    @property
    def in_width(self) -> int:
        """Channels of a mel on its way and of its condition."""
        return self.num_mels + self.timbre.width

    def forward(
        self,
        x_BMT: Tensor,
        condition_BCT: Tensor,
        time_B: Tensor,
        valid_BT: Tensor,
        chunks: Chunks | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Velocity at one time.

        Args:
            x_BMT: mel on its way (B, M, T).
            condition_BCT: what ``timbre`` gives; zeros mean "no condition".
            time_B: flow time in [0, 1].
            valid_BT: True at valid frames.
            chunks: of the attention; None: of ``chunk_frames``.
            past: of a stream of which these frames are the next chunk; extended. All of them are valid.

        Returns:
            (B, M, T), zero at padding.
        """
        raise NotImplementedError

    def visible(self, valid_BT: Tensor, chunks: Chunks | None, past: Past | None) -> Tensor | None:
        """See ``chunk_visible``; None for the next chunk of a stream, which sees all that the past holds."""
        if past is not None:
            return None
        return chunk_visible(valid_BT, chunks or Chunks(self.chunk_frames, self.chunk_frames), self.look_back)
