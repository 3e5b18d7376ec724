"""Preference training of the audio LLM: pairs of replies to one prompt, of which one is the better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from omniaudio.data.pairs import CHOSEN, REJECTED
from omniaudio.errors import UserError
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.reference import Reference
from omniaudio.losses.preference import dpo_loss
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.tasks.base import LossTerm, Task
from omniaudio.types import NO_LABEL, LMOutput, PackedBatch


class PreferenceTask(Task):
    """DPO (arXiv:2305.18290) over replies of text and speech: module ``lm``, losses ``dpo/pairs`` and ``ce/chosen``.

    The reference is the model at the start of the training (``init``): see Reference for what of it is kept.
    ``dpo/pairs`` is a mean over pairs, each judged alone: neither ranks nor accumulation change it. ``ce/chosen`` is
    the cross-entropy of the chosen replies, a mean over their positions, the books of a frame added up: with a weight
    it keeps them from becoming rare along with the rejected.

    Logged: ``margin`` of the implicit rewards, ``accuracy`` (share of pairs whose margin is positive), ``likelier``
    (share of pairs whose chosen reply is the likelier one by position, whatever the reference says; ``likelier/first``:
    under the reference, so what there was before training), ``log_prob/...`` of the replies, and ``drift``, half the
    mean square of log(model / reference) by position: about the divergence of the two in nats.

    Args:
        modules, loss_weights: see Task, with the other arguments.
        beta: how dear it is to leave the reference.
        average: the log-probability of a reply is the mean of its positions', not their sum: length counts less. (The
            margin is then small: take a larger beta.)
    """

    lm: AudioLM

    def __init__(
        self,
        modules: Mapping[str, Any],
        loss_weights: Mapping[str, float],
        beta: float = 0.1,
        average: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(modules=modules, loss_weights=loss_weights, **kwargs)
        if beta <= 0:
            raise UserError(f"task.beta: {beta} must be > 0")
        self.beta, self.average = beta, average

    def configure_model(self) -> None:
        if self._modules:
            return
        super().configure_model()
        self.reference = Reference(self.lm)  # before a checkpoint is read

    def losses(self, batch: PackedBatch, split: str) -> dict[str, LossTerm]:
        assert batch.kinds == [CHOSEN, REJECTED] * (len(batch.kinds) // 2), batch.kinds
        first_L = log_probs(self.reference(batch), batch, self.lm.token_space)
        ours_L = log_probs(self.lm(batch, exact=True), batch, self.lm.token_space)
        first_P2, ours_P2 = (by_pair(x_L, batch) for x_L in (first_L, ours_L))
        count_P2 = num_positions(batch)
        scale_P2 = 1 / count_P2 if self.average else torch.ones_like(ours_P2)
        loss_P, margin_P = dpo_loss(scale_P2 * ours_P2, scale_P2 * first_P2, self.beta)
        num_pairs = len(loss_P)
        drift_L = (ours_L - first_L).detach().square() / 2
        told = {
            "margin": (margin_P.detach().sum(), num_pairs),
            "accuracy": ((margin_P > 0).sum(), num_pairs),
            "log_prob/chosen": (ours_P2[:, 0].detach().sum(), num_pairs),
            "log_prob/rejected": (ours_P2[:, 1].detach().sum(), num_pairs),
            "likelier": (num_likelier(ours_P2 / count_P2), num_pairs),
            "likelier/first": (num_likelier(first_P2 / count_P2), num_pairs),
            "drift": (drift_L.sum(), count_P2.sum()),
        }
        self.log_means({name: (x, torch.as_tensor(n)) for name, (x, n) in told.items()}, split)
        return {
            "dpo/pairs": LossTerm(loss_P.sum(), num_pairs),
            "ce/chosen": LossTerm(-ours_P2[:, 0].sum(), count_P2[:, 0].sum()),
        }

    def counted(self, batch: PackedBatch, number: int) -> dict[str, float]:
        count_P2 = num_positions(batch)
        return {"dpo/pairs": len(count_P2), "ce/chosen": int(count_P2[:, 0].sum())}


def log_probs(output: LMOutput, batch: PackedBatch, space: TokenSpace) -> Tensor:
    """Log-probability (L,) of what each position must predict, 0 where that is nothing.

    Of a text token; of a frame, the sum over its books; of the end of a stretch of speech that of book 0 alone, which
    ends it in generation too.
    """
    assert output.text_loss_L is not None and output.audio_loss_LK is not None
    ends_L = batch.audio_label_LK[:, 0] == space.end_frame[0]
    audio_L = output.audio_loss_LK[:, 0] + (output.audio_loss_LK[:, 1:].sum(1) * ~ends_L)
    return -(output.text_loss_L + audio_L)


def num_likelier(log_prob_P2: Tensor) -> Tensor:
    """Pairs whose chosen reply is the likelier one."""
    return (log_prob_P2[:, 0] > log_prob_P2[:, 1]).sum()


def num_positions(batch: PackedBatch) -> Tensor:
    """Positions (P, 2) of the replies that predict something."""
    return by_pair((batch.text_label_L != NO_LABEL) | (batch.audio_label_LK[:, 0] != NO_LABEL), batch)


def by_pair(x_L: Tensor, batch: PackedBatch) -> Tensor:
    """Sums over the positions of each document: (P, 2), chosen and rejected."""
    sums = [part.sum() for part in x_L.split(batch.doc_len_G.tolist())]
    return torch.stack(sums).reshape(-1, 2)
