"""Training of the text model and of the audio LLM over packed documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.lm.audio_lm import AudioLM, indistinct_specials
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.ranks import rank_and_number
from omniaudio.tasks.base import LossTerm, Task
from omniaudio.types import NO_LABEL, PackedBatch


class TextLMTask(Task):
    """Next-token prediction: module ``backbone``, loss ``ce/text``."""

    backbone: CausalBackbone

    def losses(self, batch: PackedBatch, split: str) -> dict[str, LossTerm]:
        embeds_LD = self.backbone.embed_text(batch.ids_L)
        hidden_LD = self.backbone(embeds_LD, batch.doc_len_G)
        loss_L = self.backbone.text_loss(hidden_LD, batch.text_label_L)
        return {"ce/text": LossTerm(loss_L.sum(), (batch.text_label_L != NO_LABEL).sum())}

    def counted(self, batch: PackedBatch, number: int) -> dict[str, float]:
        return {"ce/text": int((batch.text_label_L != NO_LABEL).sum())}


class AudioLMTask(Task):
    """The audio LLM: module ``lm``, losses ``ce/text`` and ``ce/audio`` (arXiv:2502.17239, section 3.2).

    ``ce/audio`` is the weighted mean over books of a mean over frames. Every book and every kind of document
    is logged apart as ``ce/audio/book0``, ``ce/text/asr``, ...

    Args:
        modules, loss_weights: see Task, with the other arguments.
        book_weights: weight of every book; default halves from book to book. They are divided by their sum.
    """

    lm: AudioLM

    def __init__(
        self,
        modules: Mapping[str, Any],
        loss_weights: Mapping[str, float],
        book_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(modules=modules, loss_weights=loss_weights, **kwargs)
        if book_weights is not None and (not book_weights or min(book_weights) < 0 or sum(book_weights) <= 0):
            raise UserError(f"task.book_weights: {list(book_weights)} must be >= 0 and not all 0")
        self.book_weights = None if book_weights is None else tuple(book_weights)

    def configure_model(self) -> None:
        if self._modules:
            return
        super().configure_model()
        for told in indistinct_specials(self.lm):
            if rank_and_number()[0] == 0:
                print(f"warning: {told}")

    def losses(self, batch: PackedBatch, split: str) -> dict[str, LossTerm]:
        output = self.lm(batch)
        assert output.text_loss_L is not None and output.audio_loss_LK is not None
        weight_K = normalised_book_weights(self.book_weights, self.lm.token_space.num_books)
        text_L, audio_LK = output.text_loss_L, output.audio_loss_LK
        audio_L = (audio_LK * weight_K.to(audio_LK)).sum(-1)
        terms = {
            "ce/text": LossTerm(text_L.sum(), (batch.text_label_L != NO_LABEL).sum()),
            "ce/audio": LossTerm(audio_L.sum(), (batch.audio_label_LK[:, 0] != NO_LABEL).sum()),
        }
        self.log_means(loss_sums(batch, text_L.detach(), audio_LK.detach(), weight_K), split)
        return terms

    def counted(self, batch: PackedBatch, number: int) -> dict[str, float]:
        labels = {"ce/text": batch.text_label_L, "ce/audio": batch.audio_label_LK[:, 0]}
        return {name: int((label_L != NO_LABEL).sum()) for name, label_L in labels.items()}


def normalised_book_weights(weights: Sequence[float] | None, num_books: int) -> Tensor:
    """(K,) weights that sum to one; by default 1, 1/2, 1/4, ... of the first."""
    if weights is None:
        weights = [0.5**book for book in range(num_books)]
    if len(weights) != num_books:
        raise UserError(f"task.book_weights: {len(weights)} weights for {num_books} books")
    weight_K = torch.tensor(list(weights), dtype=torch.float32)
    return weight_K / weight_K.sum()


def loss_sums(
    batch: PackedBatch, text_L: Tensor, audio_LK: Tensor, weight_K: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Losses of a batch by book and by kind of document, for those that it holds: sums and counts."""
    stats: dict[str, tuple[Tensor, Tensor]] = {}
    has_text_L = batch.text_label_L != NO_LABEL
    has_audio_L = batch.audio_label_LK[:, 0] != NO_LABEL
    if bool(has_audio_L.any()):
        num_frames = has_audio_L.sum()
        stats = {f"ce/audio/book{book}": (total, num_frames) for book, total in enumerate(audio_LK.sum(0))}
    names = sorted(set(batch.kinds))
    kind_G = torch.tensor([names.index(kind) for kind in batch.kinds], device=text_L.device)
    kind_L = kind_G.repeat_interleave(batch.doc_len_G.to(text_L.device))
    audio_L = (audio_LK * weight_K.to(audio_LK)).sum(-1)
    for i, name in enumerate(names):
        here_L = kind_L == i
        for what, loss_L, has_L in (("text", text_L, has_text_L), ("audio", audio_L, has_audio_L)):
            count = (here_L & has_L).sum()
            if count > 0:
                stats[f"ce/{what}/{name}"] = (loss_L[here_L].sum(), count)
    return stats
