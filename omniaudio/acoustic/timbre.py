"""Whose voice the flow speaks with: a vector of the speaker, or the mel of what was said before, or both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.types import valid_steps


class Timbre(nn.Module):
    """What an estimator is told of the voice beside the guess of the prenet (arXiv:2407.05407, section 2.3).

    Each slot is as many channels as the mel has. Without a slot, as published for codes that carry the voice, it is the
    guess alone, and there are no weights.

    Args:
        num_mels: M.
        speaker_width: S, size of the speaker's vector; 0: no such slot.
        prompt: whether the mel of the first frames can be given.
        speaker_share: share of the training items that are told their vector; the others are told zeros.
        prompt_share: share of the training items that are shown some of their own first frames.
        max_prompt: most of an item that is shown, as a share of its frames.

    Raises:
        UserError: a width below 0, a share beyond its limits.
    """

    def __init__(
        self,
        num_mels: int,
        speaker_width: int = 0,
        prompt: bool = False,
        speaker_share: float = 0.5,
        prompt_share: float = 0.5,
        max_prompt: float = 0.3,
    ) -> None:
        super().__init__()
        if speaker_width < 0:
            raise UserError(f"timbre.speaker_width {speaker_width}: at least 0, which is none")
        for name, share in (("speaker_share", speaker_share), ("prompt_share", prompt_share)):
            if not 0 <= share <= 1:
                raise UserError(f"timbre.{name} {share:g}: from 0 to 1")
        if not 0 <= max_prompt < 1:
            raise UserError(
                f"timbre.max_prompt {max_prompt:g}: from 0 to less than 1, or nothing is left to learn"
            )
        self.num_mels, self.speaker_width, self.prompt = num_mels, speaker_width, prompt
        self.speaker_share, self.prompt_share, self.max_prompt = speaker_share, prompt_share, max_prompt
        self.speaker_proj = nn.Linear(speaker_width, num_mels) if speaker_width else None

    @property
    def width(self) -> int:
        """C, channels of the condition."""
        return self.num_mels * (1 + bool(self.speaker_width) + self.prompt)

    def forward(
        self, mu_BMT: Tensor, speaker_BS: Tensor | None = None, prompt_BMT: Tensor | None = None
    ) -> Tensor:
        """The condition (B, C, T): guess, speaker, prompt, of which the last two are there if they have a slot.

        Args:
            mu_BMT: guess of the mel.
            speaker_BS: None: unknown, as zeros.
            prompt_BMT: standardised mel, zero where it is not known; None: unknown.

        Raises:
            UserError: something is told that has no slot.
        """
        if speaker_BS is not None and speaker_BS.shape[1] != self.speaker_width:
            raise UserError(
                f"flow: a speaker's vector of {speaker_BS.shape[1]} numbers; this flow was made with "
                f"timbre.speaker_width={self.speaker_width}"
            )
        if prompt_BMT is not None and not self.prompt:
            raise UserError("flow: a prompt, but this flow was made with timbre.prompt=false")
        parts = [mu_BMT]
        if self.speaker_proj is not None:
            if speaker_BS is None:
                speaker_BS = mu_BMT.new_zeros(len(mu_BMT), self.speaker_width)
            parts.append(self.speaker_proj(speaker_BS)[..., None].expand_as(mu_BMT))
        if self.prompt:
            parts.append(torch.zeros_like(mu_BMT) if prompt_BMT is None else prompt_BMT)
        return torch.cat(parts, dim=1)

    def draw(self, length_B: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """For a step of training: first frames (B,) that an item is shown, and (B,) True if it is told its vector."""
        if self.width == self.num_mels:  # no slot, no draws
            return torch.zeros_like(length_B), torch.zeros_like(length_B, dtype=torch.bool)
        uniform_3B = torch.rand(3, len(length_B), generator=generator, device=length_B.device)
        shown_B = (uniform_3B[0] < self.prompt_share) * self.prompt
        return (shown_B * uniform_3B[1] * self.max_prompt * length_B).long(), uniform_3B[
            2
        ] < self.speaker_share


def mel_statistics(mel_BMT: Tensor, mel_len_B: Tensor) -> Tensor:
    """Mean and deviation over time of each bin of a mel, (B, 2 M): a speaker's vector that needs no training."""
    valid_B1T = valid_steps(mel_len_B, mel_BMT.shape[2])[:, None]
    count_B1 = mel_len_B[:, None].clamp(min=1)
    mean_BM = (mel_BMT * valid_B1T).sum(2) / count_B1
    variance_BM = ((mel_BMT - mean_BM[..., None]) * valid_B1T).square().sum(2) / count_B1
    return torch.cat([mean_BM, variance_BM.sqrt()], dim=1)
