"""What a frozen text LLM makes of embedded speech: its cross-entropy on the text that follows.

Source: arXiv:2502.17239 section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniaudio.lm.backbone import CausalBackbone
from omniaudio.types import NO_LABEL


def transcript_loss(
    llm: CausalBackbone,
    heard: Sequence[Tensor],
    pieces: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, int]:
    """Cross-entropy of documents <prompt, speech, text>, packed; prompt and speech have no loss.

    Args:
        llm: reads the documents, none from inside another.
        heard: embeddings (S, D) of every item's speech, in the LLM's width, S at least 1.
        pieces: ids of every text, its end included.
        prompts: ids before every item's speech; None has none.

    Returns:
        sum over all pieces in nats (scalar), and their count.
    """
    embeds, labels = [], []
    for heard_SD, ids, prompt in zip(heard, pieces, prompts or [()] * len(heard), strict=True):
        written_L = torch.tensor([*prompt, *ids], device=heard_SD.device)
        text_LD = llm.embed_text(written_L[:-1]).to(heard_SD.dtype)
        embeds.append(torch.cat([text_LD[: len(prompt)], heard_SD, text_LD[len(prompt) :]]))
        silent = written_L.new_full((len(prompt) + len(heard_SD) - 1,), NO_LABEL)
        labels.append(torch.cat([silent, written_L[len(prompt) :]]))
    hidden_LD = llm(torch.cat(embeds), [len(document) for document in embeds])
    return llm.text_loss(hidden_LD, torch.cat(labels)).sum(), sum(map(len, pieces))
