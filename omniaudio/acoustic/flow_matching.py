"""Flow-matching decoder: hidden states of the tokenizer's decoder to a 24 kHz mel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniaudio.acoustic.estimator import Chunks, Estimator
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.timbre import mel_statistics
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

WARPS = ("cosine", "uniform", "logit_normal")
"""Times, of the steps and of training: dense at the start, as published; evenly spread; or most of them in the middle
(arXiv:2403.03206)."""

CALLS = {"euler": 1, "midpoint": 2, "heun": 2}
"""Velocities that a solver asks for in a step."""


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
        train_warp: of the times of training, one of WARPS.
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
        check_choice("flow.train_warp", train_warp, WARPS)
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
        speaker_BS: Tensor | None = None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Training losses, each (sum, count of valid mel values).

        Args:
            hidden_BTD: hidden states (B, T', D), hidden_len_B valid.
            mel_BMT: true log-mel (B, M, T), mel_len_B valid. The tokenizer drops the last few frames of a
                clip: the mel is cut to the hidden states' time, never stretched.
            generator: of the random draws; None is torch's global one.
            chunks: of the estimator's attention, see ``draw_chunks``; None are its own.
            speaker_BS: the speakers' vectors, told to some of the items; None: to none. See Timbre.

        Returns:
            'flow/mse' velocity error, behind the frames that an item is shown as its prompt; 'flow/prior' L1 of the
            prenet's guess, of all frames; both in standardised units.
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
        condition, known_BT = self._train_condition(mu, target, length_B, keep_B, speaker_BS, generator)
        mse = self.velocity_error(target, condition, valid_BT, noise, time_B, keep_B, chunks, known_BT)
        counts = [where.sum() * self.mel_spec.num_mels for where in (valid_BT & ~known_BT, valid_BT)]
        return {"flow/mse": (mse, counts[0]), "flow/prior": ((mu - target).abs().sum(), counts[1])}

    def _train_condition(
        self,
        mu: Tensor,
        target: Tensor,
        length_B: Tensor,
        keep_B: Tensor,
        speaker_BS: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Guess, and what an item is told of its voice (B, C, T); and True (B, T) at the frames it is shown."""
        timbre = self.estimator.timbre
        prompt_len_B, told_B = timbre.draw(length_B, generator)
        known_BT = valid_steps(prompt_len_B * keep_B, target.shape[2])
        if speaker_BS is not None:
            speaker_BS = speaker_BS * told_B[:, None]
        return timbre(mu, speaker_BS, target * known_BT[:, None] if timbre.prompt else None), known_BT

    def speaker_of(self, mel_BMT: Tensor, mel_len_B: Tensor) -> Tensor:
        """Vectors (B, 2 M) of the voices of some log-mels, where nothing else makes them: see ``mel_statistics``."""
        return mel_statistics((mel_BMT - self.mel_mean) / self.mel_std, mel_len_B)

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
        condition: Tensor,
        valid_BT: Tensor,
        noise: Tensor,
        time_B: Tensor,
        keep_B: Tensor,
        chunks: Chunks | None = None,
        known_BT: Tensor | None = None,
    ) -> Tensor:
        """Sum of squared velocity errors for given draws.

        Args:
            target, noise: end and start of the path (B, M, T); condition: (B, C, T).
            valid_BT: True at valid frames.
            time_B: flow time in [0, 1]; keep_B: True where the condition is shown.
            chunks: see Estimator.forward.
            known_BT: True at frames that are seen and not counted; None: nowhere.
        """
        time = time_B[:, None, None]
        on_path = (1 - (1 - self.sigma_min) * time) * noise + time * target
        velocity = target - (1 - self.sigma_min) * noise
        shown = condition * keep_B[:, None, None]
        error = self.velocity(on_path, shown, keep_B, time_B, valid_BT, chunks).float() - velocity
        counted_BT = valid_BT if known_BT is None else valid_BT & ~known_BT
        return (error * counted_BT[:, None]).square().sum()

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

        With ``guess_std`` s, the mel is the guess plus an error of that width (without condition: mean 0,
        width 1). The linear estimate of the velocity from x is then known, and the estimator adds to it, in
        units of what this estimate misses: after arXiv:2206.00364, appendix B.6, for the straight path.

        Args:
            x: point (B, M, T).
            shown: condition (B, C, T), zero where ``keep_B`` is False. Its first M channels are the guess.
            time_B: flow time in [0, 1].
            valid_BT: True at valid frames.
            chunks, past: see Estimator.forward.
        """
        out = self.estimator(x, shown, time_B, valid_BT, chunks, past)
        if self.guess_std is None:
            return out
        time, guess = time_B[:, None, None], shown[:, : self.mel_spec.num_mels]
        variance = torch.where(keep_B, self.guess_std**2, 1.0)[:, None, None]
        spread = (1 - time).square() + time.square() * variance
        linear = guess + (time * variance - (1 - time)) / spread * (x - time * guess)
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
        speaker_BS: Tensor | None = None,
        prompt_BMT: Tensor | None = None,
        prompt_len_B: Tensor | None = None,
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
            speaker_BS: the speakers' vectors, of the kind that the training told; None: unknown.
            prompt_BMT: log-mel of speech whose hidden states are the first of ``hidden_BTD``: held as it is, and cut
                off the result; None: there is none.
            prompt_len_B: its valid frames; None: all.

        Returns:
            mel_BMT (zero beyond the length), mel_len_B.

        Raises:
            UserError: no step at all, an unknown solver or warp, a speaker or prompt without a slot (see Timbre), a
                prompt that is longer than the hidden states.
        """
        check_choice("flow solver", solver, SOLVERS)
        check_choice("flow warp", time_warp, WARPS)
        if num_steps < 1:
            raise UserError(f"flow: {num_steps} steps; at least 1")
        mel_len_B = self.mel_length(hidden_len_B)
        mu = self.prenet(hidden_BTD, hidden_len_B, mel_len_B)
        if noise is None:
            noise = self.draw_noise(mu.shape[2], generator, mu.device).expand_as(mu)
        valid_BT, known_BT = valid_steps(mel_len_B, mu.shape[2]), None
        if prompt_BMT is not None:
            if prompt_len_B is None:
                prompt_len_B = torch.full_like(mel_len_B, prompt_BMT.shape[2])
            prompt_BMT, known_BT = self.known(prompt_BMT, prompt_len_B, mel_len_B)
        condition = self.estimator.timbre(mu, speaker_BS, prompt_BMT)
        mel = self.integrate(
            noise, condition, valid_BT, num_steps, guidance, solver, time_warp, chunks, known_BT=known_BT
        )
        mel = (mel * self.mel_std + self.mel_mean) * valid_BT[:, None]
        return (mel, mel_len_B) if prompt_len_B is None else behind(mel, prompt_len_B, mel_len_B)

    def known(self, prompt_BMT: Tensor, prompt_len_B: Tensor, mel_len_B: Tensor) -> tuple[Tensor, Tensor]:
        """A prompt as the estimator sees it, standardised and as long as the mel (B, M, T); True (B, T) where it is.

        Raises:
            UserError: it is longer than the mel.
        """
        for given, num_frames in zip(prompt_len_B.tolist(), mel_len_B.tolist(), strict=True):
            check_prompt(given, num_frames)
        num_frames = int(mel_len_B.max())
        known_BT = valid_steps(prompt_len_B, num_frames)
        prompt_BMT = F.pad(prompt_BMT, (0, num_frames - prompt_BMT.shape[2]))
        return (prompt_BMT - self.mel_mean) / self.mel_std * known_BT[:, None], known_BT

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
        condition: Tensor,
        valid_BT: Tensor,
        num_steps: int,
        guidance: float,
        solver: str = "euler",
        time_warp: str = "cosine",
        chunks: Chunks | None = None,
        pasts: Iterable[Past] = (),
        known_BT: Tensor | None = None,
    ) -> Tensor:
        """From noise to standardised mel; with guidance, both branches in one batch, one without any condition.

        Args:
            noise: (B, M, T); condition: (B, C, T), of ``Timbre``.
            pasts: of a stream of which these frames are the next chunk, one for each velocity that the solver asks for.
            known_BT: True at frames of a prompt, which go straight to it, as in training; None: there is none.
        """
        from torchdiffeq import odeint

        times = step_times(num_steps, time_warp).to(condition.device)
        branches = 2 if guidance else 1
        seen = torch.cat([condition, torch.zeros_like(condition)][:branches])
        valid = valid_BT.repeat(branches, 1)
        keep = torch.arange(len(seen), device=seen.device) < len(condition)
        turn = iter(pasts)
        straight = (
            None if known_BT is None else condition[:, -noise.shape[1] :] - (1 - self.sigma_min) * noise
        )

        def velocity(time: Tensor, x: Tensor) -> Tensor:
            time_B = time.to(x).expand(len(seen))
            out = self.velocity(x.repeat(branches, 1, 1), seen, keep, time_B, valid, chunks, next(turn, None))
            if guidance:
                shown, free = out.chunk(2)
                out = (1 + guidance) * shown - guidance * free
            if known_BT is None or straight is None:
                return out
            return torch.where(known_BT[:, None], straight, out)

        path: Tensor = odeint(velocity, noise, times, method=SOLVERS[solver])
        return path[-1]


def check_prompt(num_given: int, num_frames: int) -> None:
    """Refuse a prompt that is longer than the mel whose first frames it is."""
    if num_given > num_frames:
        raise UserError(
            f"flow: a prompt of {num_given} frames; the hidden states, which begin with its own, are {num_frames}"
        )


def behind(mel_BMT: Tensor, first_B: Tensor, mel_len_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each mel from its frame ``first_B`` on: mel_BMT (zero beyond the length), mel_len_B."""
    left_B = mel_len_B - first_B
    frame_BT = first_B[:, None] + torch.arange(int(left_B.max()), device=mel_BMT.device)
    frame_BT = frame_BT.clamp(max=mel_BMT.shape[2] - 1)
    rest = mel_BMT.gather(2, frame_BT[:, None].expand(-1, mel_BMT.shape[1], -1))
    return rest * valid_steps(left_B, rest.shape[2])[:, None], left_B


def step_times(num_steps: int, warp: str) -> Tensor:
    """Where the steps of the solver begin and end (num_steps + 1,), from 0 to 1."""
    times = warped(torch.linspace(0, 1, num_steps + 1), warp)
    times[0], times[-1] = 0.0, 1.0
    return times


def warped(uniform: Tensor, warp: str) -> Tensor:
    """Times in [0, 1] from evenly spread ones."""
    if warp == "cosine":
        return 1 - torch.cos(uniform * math.pi / 2)
    if warp == "logit_normal":
        return torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
    return uniform
