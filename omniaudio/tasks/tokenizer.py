"""Speech tokenizer training: reconstruction, commitment, and text alignment through a frozen text LLM.

Source: arXiv:2502.17239 section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniaudio.data.prompts import judges_prompt
from omniaudio.draws import Draws, choose_items
from omniaudio.encoders.augment import mask_time
from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.losses.alignment import transcript_loss
from omniaudio.losses.mel import SCALES, mel_distance, pooled_length
from omniaudio.metrics.codebooks import HealthLimits, book_numbers, complaints
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.tasks.base import LossTerm, Task, step_seed
from omniaudio.types import MelDecoderOutput, WaveBatch, is_sharded

HEALTH_EVERY = 100
"""Steps between two looks at the books."""


@dataclass(frozen=True)
class Ramp:
    """A number that goes in a line from ``start`` to ``end`` between two shares of the training."""

    start: float
    end: float
    begins: float = 0.0
    ends: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begins < self.ends <= 1:
            raise UserError(f"task: a ramp must have 0 <= begins < ends <= 1, not {self.begins}, {self.ends}")

    def at(self, progress: float) -> float:
        """Value at a share of the training."""
        share = min(1.0, max(0.0, (progress - self.begins) / (self.ends - self.begins)))
        return self.start + (self.end - self.start) * share


class TokenizerTask(Task):
    """Losses ``recon/{coarse,refined}_{fine,wide}``, ``vq/commit`` and ``ce/align``.

    Modules: ``tokenizer`` (SpeechTokenizer), ``judge`` (CausalBackbone; freeze it) and ``align`` (from the
    tokenizer's width to the judge's). ``ce/align`` is the judge's cross-entropy on what the batch asks
    for (transcript, response, translation, continuation) after it has read the quantized embeddings; items without
    text (crops of longer clips) do not count.

    With accumulation every loss is a mean over the whole step, of what the model made of each batch when it came: the
    books learn from every batch, not from every step, and draws (dropped books, items that pass by the quantizer,
    judged clips) are a batch's own. So ``accumulate`` changes what is learned a little, the number of processes not.

    Args:
        text_tokenizer: of the judge: file, folder, or the object.
        token_space: of the judge; its ``eos`` ends the transcript.
        replaced_share: share of items whose embeddings are quantized, the rest bypasses the quantizer.
        commit_scale: factor on the weight of ``vq/commit``.
        prompts: say before the speech what is asked for; without it kinds other than transcripts are guesswork.
        judged_share: share of the clips that the judge hears in a training step, drawn anew each step. A large judge
            takes most of a step's time on a small machine; the loss stays a mean over the text it was asked for.
            Not in the paper (1.0).
        mask_share, mask_span: SpecAugment time masks, see ``mask_time``; span in mel frames.
        health: limits below which a book is reported; None has HealthLimits' own.
        kwargs: see Task.
    """

    tokenizer: SpeechTokenizer
    judge: CausalBackbone
    align: nn.Module

    def __init__(
        self,
        text_tokenizer: str | Path | TextTokenizer,
        token_space: TokenSpace,
        replaced_share: Ramp = Ramp(0.1, 1.0),
        commit_scale: Ramp = Ramp(0.1, 1.0),
        prompts: bool = True,
        judged_share: float = 1.0,
        mask_share: float = 0.05,
        mask_span: int = 10,
        health: HealthLimits | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(text_tokenizer, TextTokenizer):
            text_tokenizer = TextTokenizer.from_file(text_tokenizer)
        self.text_tokenizer = text_tokenizer
        self.token_space = token_space
        self.replaced_share = replaced_share
        self.commit_scale = commit_scale
        self.prompts = prompts
        if not 0 < judged_share <= 1:
            raise UserError(f"task.judged_share {judged_share}: above 0, at most 1")
        self.judged_share = judged_share
        self.mask_share = mask_share
        self.mask_span = mask_span
        self.health = health or HealthLimits()
        self.ill: set[int] = set()

    def losses(self, batch: WaveBatch, split: str) -> dict[str, LossTerm]:
        """All losses of a batch at the tokenizer's sample rate."""
        tokenizer, trains = self.tokenizer, split == "train"
        if batch.sample_rate_hz != tokenizer.sample_rate_hz:
            raise UserError(
                f"audio of {batch.sample_rate_hz} Hz; the tokenizer reads {tokenizer.sample_rate_hz}"
            )
        draws = Draws(step_seed(self.seed, self.batches_seen, 0, split))  # the same on every rank
        mel_BMT, mel_len_B = tokenizer.log_mel(batch.wav_BN, batch.num_samples_B)
        if trains:
            step = (self.batches_seen - 1) // self.accumulate
            masks = Draws(step_seed(self.seed, step, 0, "mask"))  # the same for all batches of the step
            mel_BMT = mask_time(mel_BMT, mel_len_B, self.mask_share, self.mask_span, masks, batch.keys)
        replaced = self.replaced_share.at(self.progress) if trains else 1.0
        quantized, decoded = tokenizer.reconstruct(mel_BMT, mel_len_B, bypass_share=1 - replaced, draws=draws)
        num_frames_B = tokenizer.num_frames(mel_len_B)

        losses = self._reconstruction(batch, decoded)
        num_frames = num_frames_B.sum()
        scale = self.commit_scale.at(self.progress) if trains else 1.0
        losses["vq/commit"] = LossTerm(quantized.commit_loss * num_frames, num_frames, factor=scale)
        emb_BSD = tokenizer.bridge.up(quantized.quantized_BSD)
        judged = self.judged_share if trains else 1.0
        judged_B = choose_items("judged", len(num_frames_B), judged, num_frames_B.device, draws)
        losses["ce/align"] = self._alignment(batch, emb_BSD, num_frames_B, judged_B)
        stats = {f"vq/{name}": value for name, value in quantized.stats.items()}
        self.log_stats({**stats, "vq/replaced_share": replaced, "vq/commit_scale": scale}, split)
        if trains and self.batches_seen % (HEALTH_EVERY * self.accumulate) == 0:
            self._check_health()
        return losses

    def counted(self, batch: WaveBatch, number: int) -> dict[str, float]:
        tokenizer = self.tokenizer
        num_frames_B = tokenizer.num_frames(tokenizer.mel_length(batch.num_samples_B))
        target_len_B = tokenizer.decoder_mel_spec.num_frames(batch.num_samples_B)
        length_B = torch.minimum(tokenizer.decoder.mel_length(num_frames_B), target_len_B)
        draws = Draws(step_seed(self.seed, number, 0, "train"))
        judged_B = choose_items("judged", len(num_frames_B), self.judged_share, num_frames_B.device, draws)
        return {
            **{
                f"recon/{stage}_{scale.name}": int(pooled_length(length_B, scale).sum())
                for stage in ("coarse", "refined")
                for scale in SCALES
            },
            "vq/commit": int(num_frames_B.sum()),
            "ce/align": sum(len(ids) for ids in self._answers(batch, num_frames_B, judged_B).values()),
        }

    def note(self) -> str:
        """Share of the codes in use, book by book."""
        usage = book_numbers(self.stats, "usage") if self._counts_use else []
        return f"books used {' '.join(f'{100 * share:.0f}' for share in usage)} %" if usage else ""

    @property
    def _counts_use(self) -> bool:
        """Our books remember the last steps; others tell the use of one batch, which is no measure of them."""
        return hasattr(self.tokenizer.quantizer, "books")

    def _check_health(self) -> None:
        """Say once which book has collapsed and what to change; a book that recovers may be named again."""
        if not self._counts_use:
            return
        found = complaints(self.stats, self.tokenizer.codebook_sizes, self.health)
        for book, words in found.items():
            if book not in self.ill and self.global_rank == 0:
                self.tell(f"step {self.batches_seen // self.accumulate}: {words}")
        self.ill = set(found)

    def _reconstruction(self, batch: WaveBatch, decoded: MelDecoderOutput) -> dict[str, LossTerm]:
        target_BMT, target_len_B = self.tokenizer.decoder_mel(batch.wav_BN, batch.num_samples_B)
        length_B = torch.minimum(decoded.mel_len_B, target_len_B)
        bins_BM = (
            None if batch.band_hz_B is None else self.tokenizer.decoder_mel_spec.bins_within(batch.band_hz_B)
        )
        return {
            f"recon/{stage}_{scale.name}": LossTerm(
                *mel_distance(predicted_BMT, target_BMT, length_B, scale, bins_BM)
            )
            for stage, predicted_BMT in (("coarse", decoded.coarse_BMT), ("refined", decoded.refined_BMT))
            for scale in SCALES
        }

    def _alignment(
        self, batch: WaveBatch, emb_BSD: Tensor, num_frames_B: Tensor, judged_B: Tensor
    ) -> LossTerm:
        """Documents <prompt, embeddings of a clip, its answer, eos>; cross-entropy on answer and eos.

        Clips that are not judged, and those without words or frames, do not count.
        """
        heard_BSD = self.align(emb_BSD)
        answers = self._answers(batch, num_frames_B, judged_B)
        if not answers:
            if is_sharded(self.judge):  # other ranks may have words
                eos = [self.token_space.eos]
                total, _ = transcript_loss(self.judge, [heard_BSD[0, :1]], [eos])
                return LossTerm(total * 0.0, 0)
            return LossTerm(heard_BSD.sum() * 0.0, 0)
        heard = [heard_BSD[i, : int(num_frames_B[i])] for i in answers]
        space, encode = self.token_space, self.text_tokenizer.encode
        prompts = [
            judges_prompt(space, encode, batch.kinds[i], batch.languages[i], self.prompts) for i in answers
        ]
        return LossTerm(*transcript_loss(self.judge, heard, list(answers.values()), prompts))

    def _answers(self, batch: WaveBatch, num_frames_B: Tensor, judged_B: Tensor) -> dict[int, list[int]]:
        """What the judge is to write after it has heard an item, by the item's number: those that count."""
        told = judged_B & (num_frames_B > 0)
        return {
            i: [*self.text_tokenizer.encode(text), self.token_space.eos]
            for i, text in enumerate(batch.texts)
            if text.strip() and told[i]
        }
