"""The token contract: what two artefacts must share before one may read the other's codes and ids.

A fingerprint is a flat mapping of facts (codebook sizes, code rate, special tokens, mel specs, hash of the
tokenizer's weights, ...). It is written into every code shard, checkpoint and export. Facts that both sides
hold must be equal; a side may hold fewer facts (a text LLM knows nothing of codebooks).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from omniaudio.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Fingerprint = dict[str, Any]


def digest(value: Any) -> str:
    """Short stable hash of anything that json can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, types and bytes of tensors."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def check_fingerprints(ours: Fingerprint, theirs: Fingerprint, where: str) -> None:
    """Raise a UserError that names every fact on which the two differ, with both values."""
    differing = [fact for fact in sorted(ours.keys() & theirs.keys()) if ours[fact] != theirs[fact]]
    if differing:
        facts = "; ".join(f"{fact}: {theirs[fact]!r} there, {ours[fact]!r} here" for fact in differing)
        raise UserError(
            f"{where} was made for another token layout: {facts}. Make it again with this tokenizer."
        )


def merge_fingerprints(parts: Iterable[Fingerprint], where: str) -> Fingerprint:
    """Union of facts; parts that contradict each other raise a UserError."""
    merged: Fingerprint = {}
    for part in parts:
        check_fingerprints(merged, part, where)
        merged.update(part)
    return merged
