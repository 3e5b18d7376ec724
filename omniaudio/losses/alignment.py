"""What a frozen text LLM makes of embedded speech: its cross-entropy on the transcript that follows.

Source: arXiv:2502.17239 section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniaudio.lm.backbone import CausalBackbone
from omniaudio.types import NO_LABEL


def transcript_loss(
    llm: CausalBackbone, heard: Sequence[Tensor], pieces: Sequence[Sequence[int]]
) -> tuple[Tensor, int]:
    """Cross-entropy of documents <speech, transcript>, packed; speech itself has no loss.

    Args:
        llm: reads the documents, none from inside another.
        heard: embeddings (S, D) of every item's speech, in the LLM's width, S at least 1.
        pieces: ids of every transcript, its end included.

    Returns:
        sum over all pieces in nats (scalar), and their count.
    """
    embeds, labels = [], []
    for heard_SD, ids in zip(heard, pieces, strict=True):
        ids_L = torch.tensor(ids, device=heard_SD.device)
        embeds.append(torch.cat([heard_SD, llm.embed_text(ids_L[:-1]).to(heard_SD.dtype)]))
        labels.append(torch.cat([ids_L.new_full((len(heard_SD) - 1,), NO_LABEL), ids_L]))
    hidden_LD = llm(torch.cat(embeds), [len(document) for document in embeds])
    return llm.text_loss(hidden_LD, torch.cat(labels)).sum(), sum(map(len, pieces))
