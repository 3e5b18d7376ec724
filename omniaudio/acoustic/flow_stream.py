"""Flow matching while hidden states still come: chunk by chunk, with what the layers remember."""

from __future__ import annotations

import torch
from torch import Tensor

from omniaudio.acoustic.flow_matching import (
    CALLS,
    NOISE_FRAMES,
    SOLVERS,
    WARPS,
    FlowMatchingDecoder,
    check_prompt,
)
from omniaudio.errors import UserError, check_choice
from omniaudio.past import Past
from omniaudio.types import device_of


class Noise:
    """Starting noise of a stretch by its place: that of ``FlowMatchingDecoder.draw_noise``, however it is asked for.

    Args:
        flow: whose mel it becomes.
        generator: at the beginning of the stretch.
    """

    def __init__(self, flow: FlowMatchingDecoder, generator: torch.Generator) -> None:
        self.flow, self.generator, self._begin = flow, generator, 0
        self._held_BMT = torch.zeros(1, flow.mel_spec.num_mels, 0, device=device_of(flow))

    def frames(self, begin: int, end: int) -> Tensor:
        """(1, M, end - begin); a later call does not begin earlier."""
        while self._begin + self._held_BMT.shape[2] < end:
            more = self.flow.draw_noise(NOISE_FRAMES, self.generator, self._held_BMT.device)
            self._held_BMT = torch.cat([self._held_BMT, more], dim=2)
        self._held_BMT, self._begin = self._held_BMT[:, :, begin - self._begin :], begin
        return self._held_BMT[:, :, : end - begin]


class FlowStream:
    """Hidden states in chunks in, their mel out.

    Of a flow with limits of its own (``has_limits``) it is what ``FlowMatchingDecoder.decode`` gives with these
    chunks; one that was trained to look back without end is given a limit. Within a chunk attention sees both ways,
    so each chunk is pushed whole. Work and memory of a chunk depend on its length and the limits, not on what came
    before.

    Args:
        flow: in eval mode.
        generator: of the starting noise.
        look_back: mel frames of the past that prenet and estimator see where they have no limit.
        num_steps, guidance, solver, time_warp: see FlowMatchingDecoder.decode.
        speaker_S: the speaker's vector, see Timbre; None: unknown.
        prompt_MT: log-mel of the first frames, as of ``decode``: their hidden states are pushed like all, and nothing
            comes out for them; ``finish`` refuses one that is longer than all of them.

    Raises:
        UserError: the hidden states are not at the rate of the mel, a speaker or prompt without a slot.
    """

    def __init__(
        self,
        flow: FlowMatchingDecoder,
        generator: torch.Generator,
        look_back: int = 200,
        num_steps: int = 10,
        guidance: float = 0.7,
        solver: str = "euler",
        time_warp: str = "cosine",
        speaker_S: Tensor | None = None,
        prompt_MT: Tensor | None = None,
    ) -> None:
        check_choice("flow solver", solver, SOLVERS)
        check_choice("flow warp", time_warp, WARPS)
        if flow.hidden_rate_hz != flow.mel_spec.mel_rate_hz:
            raise UserError(
                f"streaming: flow.hidden_rate_hz is {flow.hidden_rate_hz:g}, the mel has {flow.mel_spec.mel_rate_hz:g} "
                "frames a second; they must be equal"
            )
        own = flow.prenet.look_back, flow.estimator.look_back
        limits = [look_back if limit is None else limit for limit in own]
        self.flow, self.guidance, self.solver, self.time_warp = flow, guidance, solver, time_warp
        self.num_steps, self._num_frames = num_steps, 0
        self._noise = Noise(flow, generator)
        self._prenet_past = Past(limits[0])
        self._pasts = [Past(limits[1]) for _ in range(num_steps * CALLS[solver])]
        self._speaker_BS = None if speaker_S is None else speaker_S[None]
        self._prompt_BMT = None if prompt_MT is None else prompt_MT[None]  # what is left of it

    @torch.no_grad()
    def push(self, hidden_TD: Tensor) -> Tensor:
        """The next chunk of hidden states (T, D) to its log-mel (M, T)."""
        begin, end = self._num_frames, self._num_frames + len(hidden_TD)
        if begin == end:
            return hidden_TD.new_zeros(self.flow.mel_spec.num_mels, 0)
        self._num_frames = end
        mu = self.flow.prenet.guess(hidden_TD[None], self._prenet_past).transpose(1, 2)
        valid_BT = torch.ones(1, end - begin, dtype=torch.bool, device=mu.device)
        prompt, known_BT = self._next_of_prompt(end - begin)
        condition = self.flow.estimator.timbre(mu, self._speaker_BS, prompt)
        mel = self.flow.integrate(
            self._noise.frames(begin, end), condition, valid_BT, self.num_steps, self.guidance, self.solver,
            self.time_warp, pasts=self._pasts, known_BT=known_BT,
        )  # fmt: skip
        mel_MT: Tensor = mel[0] * self.flow.mel_std + self.flow.mel_mean
        return mel_MT if known_BT is None else mel_MT[:, int(known_BT.sum()) :]

    def finish(self) -> None:
        """The stretch is over.

        Raises:
            UserError: the prompt was longer than all that was pushed: nothing came out.
        """
        num_left = 0 if self._prompt_BMT is None else self._prompt_BMT.shape[2]
        check_prompt(self._num_frames + num_left, self._num_frames)

    def _next_of_prompt(self, num_frames: int) -> tuple[Tensor | None, Tensor | None]:
        """See FlowMatchingDecoder.known; None when the prompt is over."""
        if self._prompt_BMT is None:
            return None, None
        now, left = self._prompt_BMT[..., :num_frames], self._prompt_BMT[..., num_frames:]
        self._prompt_BMT = left if left.shape[2] else None
        lengths = [torch.tensor([length], device=now.device) for length in (now.shape[2], num_frames)]
        return self.flow.known(now, lengths[0], lengths[1])

    @property
    def num_values(self) -> int:
        """Numbers that are remembered."""
        return sum(past.num_values for past in (self._prenet_past, *self._pasts))


def has_limits(flow: FlowMatchingDecoder) -> bool:
    """Whether a flow looks back so far and no farther, in training too."""
    return flow.prenet.look_back is not None and flow.estimator.look_back is not None
