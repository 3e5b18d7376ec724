"""Flow-matching decoder: hidden states of the tokenizer's decoder to a 24 kHz mel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from omniaudio.acoustic.estimator import Chunks, Estimator
from omniaudio.acoustic.prenet import Prenet
from omniaudio.draws import Draws
from omniaudio.errors import UserError, check_choice
from omniaudio.frontend.mel import MelSpec
from omniaudio.past import Past
from omniaudio.types import valid_steps

WHOLE = 1 << 20
"""Frames of a chunk that holds every mel."""

NOISE_FRAMES = 100
"""Starting noise is drawn in pieces of this many frames: a longer utterance begins with the same noise."""

SOLVERS = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}
"""Ours -> torchdiffeq's name; the second and third ask for two velocities a step."""

WARPS = ("cosine", "uniform")
"""Times of the steps: dense at the start, as published, or evenly spread."""

CALLS = {"euler": 1, "midpoint": 2, "heun": 2}
"""Velocities that a solver asks for in a step."""

TRAIN_WARPS = (*WARPS, "logit_normal")
"""Times of training; the third has most of them in the middle (arXiv:2403.03206)."""


class FlowMatchingDecoder(nn.Module):
    """Optimal-transport conditional flow matching (arXiv:2210.02747; arXiv:2309.03199; arXiv:2502.17239).

    Args:
        mel_spec: the mel that is generated.
        prenet: hidden states -> condition.
        estimator: (mel on its way, condition, time) -> velocity.
        hidden_rate_hz: rate of the hidden states.
        sigma_min: width of the path at its end.
        drop_condition: share of training items that see no condition (for guidance).
        mel_mean, mel_std: the mel is standardised by these inside (0 and 1: not at all).
        guess_std: error of the condition as a guess of the mel, in standardised units, if the estimator shall
            only learn what the best linear velocity misses; None, as published: all of it.
        train_warp: of the times of training, one of TRAIN_WARPS.
        train_chunks: mel frames of the estimator's chunks, one drawn for each step of training (0: the whole mel is
            one chunk); empty, as published: always the estimator's own.
    """

    def __init__(
        self,
        mel_spec: MelSpec,
        prenet: Prenet,
        estimator: Estimator,
        hidden_rate_hz: float,
        sigma_min: float = 1e-6,
        drop_condition: float = 0.2,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
        guess_std: float | None = None,
        train_warp: str = "cosine",
        train_chunks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_choice("flow.train_warp", train_warp, TRAIN_WARPS)
        for name, part in (("prenet", prenet), ("estimator", estimator)):
            if part.num_mels != mel_spec.num_mels:
                raise UserError(
                    f"flow.{name}.num_mels is {part.num_mels}, flow.mel_spec has {mel_spec.num_mels}"
                )
        self.mel_spec = mel_spec
        self.prenet = prenet
        self.estimator = estimator
        self.hidden_rate_hz = hidden_rate_hz
        self.sigma_min = sigma_min
        self.drop_condition = drop_condition
        self.mel_mean = mel_mean
        self.mel_std = mel_std
        self.guess_std = guess_std
        self.train_warp = train_warp
        if any(size < 0 for size in train_chunks):
            raise UserError(f"flow.train_chunks {list(train_chunks)}: frames, or 0 for the whole mel")
        self.train_chunks = tuple(train_chunks)

    def mel_length(self, hidden_len_B: Tensor) -> Tensor:
        """Mel frames for so many hidden states."""
        frames_per_hidden = self.mel_spec.mel_rate_hz / self.hidden_rate_hz
        return torch.round(hidden_len_B * frames_per_hidden).long().clamp(min=0)

    def losses(
        self,
        hidden_BTD: Tensor,
        hidden_len_B: Tensor,
        mel_BMT: Tensor,
        mel_len_B: Tensor,
        generator: torch.Generator | None = None,
        chunks: Chunks | None = None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Training losses, each (sum, count of valid mel values).

        Args:
            hidden_BTD: hidden states (B, T', D), hidden_len_B valid.
            mel_BMT: true log-mel (B, M, T), mel_len_B valid. The tokenizer drops the last few frames of a
                clip: the mel is cut to the hidden states' time, never stretched.
            generator: of the random draws; None is torch's global one.
            chunks: of the estimator's attention, see ``draw_chunks``; None are its own.

        Returns:
            'flow/mse' velocity error, 'flow/prior' L1 of the prenet's guess, both in standardised units.
        """
        length_B = torch.minimum(self.mel_length(hidden_len_B), mel_len_B)
        target = (mel_BMT[:, :, : int(length_B.max())] - self.mel_mean) / self.mel_std
        valid_BT = valid_steps(length_B, target.shape[2])
        mu = self.prenet(hidden_BTD, hidden_len_B, self.mel_length(hidden_len_B))[:, :, : target.shape[2]]
        mu, target = mu * valid_BT[:, None], target * valid_BT[:, None]

        uniform_2B = torch.rand(2, len(target), generator=generator, device=target.device)
        time_B = warped(uniform_2B[0], self.train_warp)
        keep_B = uniform_2B[1] >= self.drop_condition
        noise = torch.randn(target.shape, generator=generator, device=target.device)
        mse = self.velocity_error(target, mu, valid_BT, noise, time_B, keep_B, chunks)
        count = valid_BT.sum() * self.mel_spec.num_mels
        return {"flow/mse": (mse, count), "flow/prior": ((mu - target).abs().sum(), count)}

    def draw_chunks(self, draws: Draws) -> Chunks | None:
        """Chunks for one step of training: a size of ``train_chunks``, cut anywhere; None where there are none."""
        if not self.train_chunks:
            return None
        place = torch.zeros((), dtype=torch.int64)
        size = self.train_chunks[int(draws.uniform("chunk", place) * len(self.train_chunks))]
        if size == 0:
            return Chunks(WHOLE, WHOLE)
        return Chunks(1 + int(draws.uniform("first", place) * size), size)

    def velocity_error(
        self,
        target: Tensor,
        mu: Tensor,
        valid_BT: Tensor,
        noise: Tensor,
        time_B: Tensor,
        keep_B: Tensor,
        chunks: Chunks | None = None,
    ) -> Tensor:
        """Sum of squared velocity errors for given draws.

        Args:
            target, mu, noise: end, condition and start of the path (B, M, T).
            valid_BT: True at valid frames.
            time_B: flow time in [0, 1]; keep_B: True where the condition is shown.
            chunks: see Estimator.forward.
        """
        time = time_B[:, None, None]
        on_path = (1 - (1 - self.sigma_min) * time) * noise + time * target
        velocity = target - (1 - self.sigma_min) * noise
        shown = mu * keep_B[:, None, None]
        error = self.velocity(on_path, shown, keep_B, time_B, valid_BT, chunks).float() - velocity
        return (error * valid_BT[:, None]).square().sum()

    def velocity(
        self,
        x: Tensor,
        shown: Tensor,
        keep_B: Tensor,
        time_B: Tensor,
        valid_BT: Tensor,
        chunks: Chunks | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Velocity at points of the path.

        With ``guess_std`` s, the mel is ``shown`` plus an error of that width (without condition: mean 0,
        width 1). The linear estimate of the velocity from x is then known, and the estimator adds to it, in
        units of what this estimate misses: after arXiv:2206.00364, appendix B.6, for the straight path.

        Args:
            x, shown: point and condition (B, M, T), the latter zero where ``keep_B`` is False.
            time_B: flow time in [0, 1].
            valid_BT: True at valid frames.
            chunks, past: see Estimator.forward.
        """
        out = self.estimator(x, shown, time_B, valid_BT, chunks, past)
        if self.guess_std is None:
            return out
        time = time_B[:, None, None]
        variance = torch.where(keep_B, self.guess_std**2, 1.0)[:, None, None]
        spread = (1 - time).square() + time.square() * variance
        linear = shown + (time * variance - (1 - time)) / spread * (x - time * shown)
        return (linear + (variance / spread).sqrt() * out) * valid_BT[:, None]

    @torch.no_grad()
    def decode(
        self,
        hidden_BTD: Tensor,
        hidden_len_B: Tensor,
        num_steps: int = 10,
        guidance: float = 0.7,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        solver: str = "euler",
        time_warp: str = "cosine",
        chunks: Chunks | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states to log-mel, each item alike alone and in a batch.

        Args:
            hidden_BTD: hidden states (B, T', D), hidden_len_B valid.
            num_steps: steps of the solver.
            guidance: strength g of classifier-free guidance, (1 + g) v_conditioned - g v_free.
            noise: start (B, M, T); without it, one draw from ``generator`` that all items share.
            solver: one of SOLVERS.
            time_warp: of the steps, one of WARPS.
            chunks: of the estimator's attention; None are its own. Those of a FlowStream give what it gives.

        Returns:
            mel_BMT (zero beyond the length), mel_len_B.

        Raises:
            UserError: no step at all, an unknown solver or warp.
        """
        check_choice("flow solver", solver, SOLVERS)
        check_choice("flow warp", time_warp, WARPS)
        if num_steps < 1:
            raise UserError(f"flow: {num_steps} steps; at least 1")
        mel_len_B = self.mel_length(hidden_len_B)
        mu = self.prenet(hidden_BTD, hidden_len_B, mel_len_B)
        if noise is None:
            noise = self.draw_noise(mu.shape[2], generator, mu.device).expand_as(mu)
        valid_BT = valid_steps(mel_len_B, mu.shape[2])
        mel = self.integrate(noise, mu, valid_BT, num_steps, guidance, solver, time_warp, chunks)
        return (mel * self.mel_std + self.mel_mean) * valid_BT[:, None], mel_len_B

    def draw_noise(self, num_frames: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Noise (1, M, T) whose beginning does not depend on T."""
        origin = device if generator is None else generator.device
        pieces = [
            torch.randn(self.mel_spec.num_mels, NOISE_FRAMES, generator=generator, device=origin)
            for _ in range(0, num_frames, NOISE_FRAMES)
        ]
        return torch.cat(pieces, dim=1)[None, :, :num_frames].to(device)

    def integrate(
        self,
        noise: Tensor,
        mu: Tensor,
        valid_BT: Tensor,
        num_steps: int,
        guidance: float,
        solver: str = "euler",
        time_warp: str = "cosine",
        chunks: Chunks | None = None,
        pasts: Iterable[Past] = (),
    ) -> Tensor:
        """From noise to standardised mel; with guidance, both branches in one batch.

        Args:
            pasts: of a stream of which these frames are the next chunk, one for each velocity that the solver asks for.
        """
        from torchdiffeq import odeint

        times = warped(torch.linspace(0, 1, num_steps + 1, device=mu.device), time_warp)
        branches = 2 if guidance else 1
        seen = torch.cat([mu, torch.zeros_like(mu)][:branches])
        valid = valid_BT.repeat(branches, 1)
        keep = torch.arange(len(seen), device=mu.device) < len(mu)
        turn = iter(pasts)

        def velocity(time: Tensor, x: Tensor) -> Tensor:
            time_B = time.to(x).expand(len(seen))
            out = self.velocity(x.repeat(branches, 1, 1), seen, keep, time_B, valid, chunks, next(turn, None))
            if not guidance:
                return out
            shown, free = out.chunk(2)
            return (1 + guidance) * shown - guidance * free

        path: Tensor = odeint(velocity, noise, times, method=SOLVERS[solver])
        return path[-1]


def warped(uniform: Tensor, warp: str) -> Tensor:
    """Times in [0, 1] from evenly spread ones."""
    if warp == "cosine":
        return 1 - torch.cos(uniform * math.pi / 2)
    if warp == "logit_normal":
        return torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
    return uniform
