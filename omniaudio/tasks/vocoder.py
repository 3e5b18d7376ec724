"""Vocoder training: a generator and its discriminators, each with its optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.frontend.mel import LogMel, MelSpec
from omniaudio.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss, tpr_loss
from omniaudio.losses.vocoder import MultiScaleMelL1
from omniaudio.tasks.base import LossTerm, Task, step_seed
from omniaudio.training.recovery import Kept
from omniaudio.types import WaveBatch
from omniaudio.vocoders.discriminators import WaveDiscriminator
from omniaudio.vocoders.hift import HiFT
from omniaudio.vocoders.pitch import PitchTracker

GENERATOR_LOSSES = ("mel/l1", "adv/gen", "fm/disc", "tpr/gen")
DISCRIMINATOR_LOSSES = ("adv/disc", "tpr/disc")


class VocoderTask(Task):
    """Least-squares GAN with feature matching, mel L1 and TPR (arXiv:2010.05646, arXiv:2306.07842).

    Modules: ``vocoder`` and ``discriminator`` (WaveDiscriminator). Losses: ``mel/l1``, ``adv/gen``,
    ``fm/disc``, ``tpr/gen`` of the generator (``f0/l1`` too if it predicts F0), ``adv/disc``, ``tpr/disc`` of
    the discriminators. Validation measures ``mel/l1`` (and ``f0/l1``) only.

    The generator learns from discriminators that have learned from the same batch. A step that is bad for either is one
    for both: nothing of them moves, and the schedule of the discriminators waits.

    Args:
        mel_loss_specs: mels of ``mel/l1``, averaged; let one reach half the sample rate.
        adversarial_from: share of the training after which the discriminators join; the mel loss leads.
        judged_frames: the discriminators see a random crop of so many frames; None is all.
        discriminator_rate: learning rate of the discriminators for one of the generator. Their schedule begins
            when they join.
        tau: of TPR.
        gradient_clip: largest gradient norm of each of the two.
        kwargs: see Task.
    """

    vocoder: nn.Module
    discriminator: WaveDiscriminator
    mel: LogMel
    mel_loss: MultiScaleMelL1

    def __init__(
        self,
        mel_loss_specs: Sequence[MelSpec],
        adversarial_from: float = 0.0,
        judged_frames: int | None = None,
        discriminator_rate: float = 1.0,
        tau: float = 0.04,
        gradient_clip: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.accumulate != 1:
            raise UserError(f"accumulate={self.accumulate}: the vocoder's two optimizers need accumulate=1")
        self.automatic_optimization = False
        self.mel_loss_specs = tuple(mel_loss_specs)
        self.adversarial_from = adversarial_from
        self.judged_frames = judged_frames
        self.discriminator_rate = discriminator_rate
        self.tau = tau
        self.gradient_clip = gradient_clip
        self._judge_norm: dict[str, float] = {}  # of the step at hand, before clipping

    def configure_model(self) -> None:
        if self._modules:
            return
        super().configure_model()
        spec: MelSpec = self.vocoder.mel_spec  # type: ignore[assignment]
        self.hop = spec.hop
        self.mel = LogMel(spec)
        self.mel_loss = MultiScaleMelL1(self.mel_loss_specs)
        self.pitch = PitchTracker(spec.sample_rate_hz, spec.hop) if isinstance(self.vocoder, HiFT) else None
        needed = (*GENERATOR_LOSSES, *DISCRIMINATOR_LOSSES, *(("f0/l1",) if self.pitch else ()))
        missing = [name for name in needed if name not in self.loss_weights]
        if missing:
            raise UserError(f"task.loss_weights has no weight for {missing}")

    def configure_optimizers(self) -> Any:
        optimizers, schedules = [], []
        generator = (self.vocoder, 1.0, 1.0)
        discriminator = (self.discriminator, self.discriminator_rate, 1 - self.adversarial_from)
        for module, rate, share in (generator, discriminator):
            optimizer = self.make_optimizer(module)
            for group in optimizer.param_groups:
                group["lr"] *= rate
            num_steps = max(1, round(share * self.max_steps))
            schedule = self._make_scheduler(optimizer, num_training_steps=num_steps)
            optimizers.append(optimizer)
            schedules.append({"scheduler": schedule, "interval": "step"})
        return optimizers, schedules

    @property
    def judging(self) -> bool:
        """Whether the discriminators have joined."""
        return (self.batches_seen - 1) / max(1, self.max_steps) >= self.adversarial_from

    def training_step(self, batch: WaveBatch, batch_idx: int) -> None:  # type: ignore[override]
        self.begin_step(batch)
        terms, wav_hat_BN, wav_BN = self.generate(batch)
        losses = self.reduced(terms)
        generator_schedule, discriminator_schedule = self.lr_schedulers()  # type: ignore[misc]
        self._judge_norm = {}
        if self.judging:
            # The plain optimizer: Lightning counts the steps of its wrapped ones, and one batch is one step.
            optimizer = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
            kept = Kept(optimizer)  # whether the step is a bad one is known when the generator's gradient is
            judged = self._judged_crop(wav_hat_BN, wav_BN)
            judge_losses = self.reduced(self.discriminator_terms(judged[0].detach(), judged[1]))
            self._step_discriminator(optimizer, self._weighted(judge_losses))
            losses.update({name: loss.detach() for name, loss in judge_losses.items()})
            self._step_generator(losses, *judged)
            if self.watch.bad_steps:
                kept.put_back()
            else:
                discriminator_schedule.step()
        else:
            self._step_generator(losses)
        generator_schedule.step()

    def losses(self, batch: WaveBatch, split: str) -> dict[str, LossTerm]:
        """Losses that need no discriminator."""
        return self.generate(batch)[0]

    def rehearsed(self, batch: WaveBatch) -> Iterator[dict[str, LossTerm]]:
        """With the discriminators, even if they join later."""
        terms, wav_hat_BN, wav_BN = self.generate(batch)
        if self.adversarial_from >= 1:
            yield terms
            return
        judged = self._judged_crop(wav_hat_BN, wav_BN)
        yield self.discriminator_terms(judged[0].detach(), judged[1])
        yield {**terms, **self.generator_terms(*judged)}

    def generate(self, batch: WaveBatch) -> tuple[dict[str, LossTerm], Tensor, Tensor]:
        """Copy synthesis of a batch: its spectral losses, the generated and the true waveforms (B, N)."""
        mel_BMT, wav_BN = self.mel_and_target(batch)
        wav_hat_BN = self.vocoder(mel_BMT).float()
        with torch.autocast(wav_BN.device.type, enabled=False):
            terms = {"mel/l1": _mean(self.mel_loss(wav_hat_BN, wav_BN), wav_BN)}
        if self.pitch is not None:
            f0_hat_BT = self.vocoder.f0_predictor(mel_BMT).float()  # type: ignore[operator,union-attr]
            distance_BT = (f0_hat_BT - self.pitch(wav_BN)).abs()
            terms["f0/l1"] = LossTerm(distance_BT.sum(), distance_BT.numel())
        return terms, wav_hat_BN, wav_BN

    def mel_and_target(self, batch: WaveBatch) -> tuple[Tensor, Tensor]:
        """What the vocoder reads (B, M, T), and the waveforms (B, T * hop) that it shall make of it."""
        rate_hz = self.mel.spec.sample_rate_hz
        if batch.sample_rate_hz != rate_hz:
            raise UserError(f"audio of {batch.sample_rate_hz} Hz; the vocoder makes {rate_hz} Hz")
        num_samples = batch.wav_BN.shape[1] // self.hop * self.hop
        wav_BN = batch.wav_BN[:, :num_samples]
        num_samples_B = torch.full((len(wav_BN),), num_samples, device=wav_BN.device)
        with torch.autocast(wav_BN.device.type, enabled=False):
            mel_BMT, _ = self.mel(wav_BN, num_samples_B)
        return mel_BMT, wav_BN

    def discriminator_terms(self, wav_hat_BN: Tensor, wav_BN: Tensor) -> dict[str, LossTerm]:
        """Losses of the discriminators; ``wav_hat_BN`` without gradient."""
        real, _ = self.discriminator(wav_BN)
        fake, _ = self.discriminator(wav_hat_BN)
        return {
            "adv/disc": _mean(discriminator_loss(real, fake), wav_BN),
            "tpr/disc": LossTerm(tpr_loss(real, fake, self.tau), 1),  # of all processes already
        }

    def generator_terms(self, wav_hat_BN: Tensor, wav_BN: Tensor) -> dict[str, LossTerm]:
        """Losses of the generator that the discriminators give."""
        with torch.no_grad():
            real, real_features = self.discriminator(wav_BN)
        fake, fake_features = self.discriminator(wav_hat_BN)
        return {
            "adv/gen": _mean(generator_loss(fake), wav_BN),
            "fm/disc": _mean(feature_matching_loss(real_features, fake_features), wav_BN),
            "tpr/gen": LossTerm(tpr_loss(fake, real, self.tau), 1),
        }

    def _judged_crop(self, *wavs: Tensor) -> list[Tensor]:
        """The same random crop of ``judged_frames`` of each, on every rank."""
        num_frames = wavs[0].shape[1] // self.hop
        kept = min(self.judged_frames or num_frames, num_frames)
        draws = torch.Generator().manual_seed(step_seed(self.seed, self.batches_seen, 0, "crop"))
        first = int(torch.randint(num_frames - kept + 1, (), generator=draws))
        return [wav[:, first * self.hop : (first + kept) * self.hop] for wav in wavs]

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()

    def _step_discriminator(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.gradient_clip)
        self._judge_norm = {"gradient of the discriminators": float(norm)}
        if torch.isfinite(norm):
            optimizer.step()

    def _step_generator(self, losses: Mapping[str, Tensor], *judged: Tensor) -> None:
        """Step on ``losses`` and, if waveforms are judged, on what the discriminators say; log all."""
        optimizer = self.optimizers()[0]  # type: ignore[index]
        self.toggle_optimizer(optimizer)
        judgement = self.reduced(self.generator_terms(*judged)) if judged else {}
        total = self.weigh({**losses, **judgement}, "train")
        optimizer.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def _values(self, norm: float) -> dict[str, float]:
        return {**super()._values(norm), **self._judge_norm}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)  # looks at the gradient as it is, and drops a bad one
        nn.utils.clip_grad_norm_(self.vocoder.parameters(), self.gradient_clip)


def _mean(loss: Tensor, wav_BN: Tensor) -> LossTerm:
    """A mean over a batch as a LossTerm that counts the batch's items."""
    return LossTerm(loss * len(wav_BN), len(wav_BN))
