"""Which parameters learn, and how fast: patterns over parameter names, and the proof that the others did not move."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omniaudio.errors import UserError
from omniaudio.files import write_whole
from omniaudio.ranks import num_ranks
from omniaudio.training.masters import size_of, whole_value

TEXT_TABLES = (("backbone", "embed_tokens"), ("backbone", "lm_head"))
"""Of an audio LLM: they learn, or not, apart from the rest of it (arXiv:2502.17239, section 4.1)."""


def apply_trainable(module: nn.Module, patterns: Sequence[str]) -> None:
    """Give gradients to the parameters that a pattern matches, and take them from all others.

    Args:
        patterns: shell globs over dotted names; ``!pattern`` takes parameters out again, later wins.

    Raises:
        UserError: a pattern matches no parameter.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))  # a tied weight has two names
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for pattern in patterns:
        for name in _matching(parameters, pattern.removeprefix("!"), "task.trainable"):
            parameters[name].requires_grad_(not pattern.startswith("!"))


def lr_factors(module: nn.Module, factors: Mapping[str, float]) -> dict[nn.Parameter, float]:
    """Learning rate of every parameter as a share of the optimizer's; 1 where no pattern matches.

    Args:
        factors: glob pattern over parameter names -> factor; later wins.

    Raises:
        UserError: a pattern matches no parameter, or a factor is not positive.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found = dict.fromkeys(parameters.values(), 1.0)
    for pattern, factor in factors.items():
        if not factor > 0:
            raise UserError(
                f"task.lr_factors: {pattern}: {factor}; must be positive (task.trainable freezes)"
            )
        found |= {parameters[name]: factor for name in _matching(parameters, pattern, "task.lr_factors")}
    return found


def part_of(name: str) -> str:
    """The part of a model that a parameter belongs to, as users name it: a child of a module's child.

    Of an audio LLM: ``lm.backbone.embed_tokens``, ``lm.backbone.lm_head``, ``lm.backbone`` (the rest of it),
    ``lm.audio_embed`` and ``lm.audio_head``.
    """
    words = name.split(".")
    is_table = tuple(words[1:3]) in TEXT_TABLES
    return ".".join(words[: 3 if is_table else 2])


def _matching(parameters: Mapping[str, nn.Parameter], pattern: str, option: str) -> list[str]:
    names = fnmatch.filter(parameters, pattern)
    if not names:
        parts = ", ".join(sorted(set(map(part_of, parameters))))
        raise UserError(f"{option}: pattern {pattern!r} matches no parameter; there are {parts}")
    return names


def set_training_mode(module: nn.Module, mode: bool) -> None:
    """Like ``module.train(mode)``, but a submodule of frozen parameters stays in eval mode, whole."""
    module.training = mode
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            nn.Module.train(child, False)
        else:
            set_training_mode(child, mode)


def frozen_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """All frozen parameters, and the buffers of submodules that are frozen whole, by name."""
    state: dict[str, torch.Tensor] = {n: p for n, p in module.named_parameters() if not p.requires_grad}
    for path, child in module.named_modules():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            state.update({f"{path}.{name}".lstrip("."): b for name, b in child.named_buffers()})
    return state


def frozen_digests(module: nn.Module) -> dict[str, str]:
    """Name -> hash of the bytes of every frozen tensor; every process calls it, and all get the same.

    The hash is of the whole tensor, also where ZeRO 3 has cut it: another number of processes finds the same one.
    Where ZeRO computes with a rounded weight, it is of the value before: the one that was loaded and is written again.
    Where a process has other bytes than the first, it is one of what all have.
    """
    digests = {name: _tensor_digest(tensor) for name, tensor in sorted(frozen_state(module).items())}
    if num_ranks() == 1:
        return digests
    found: list[Any] = [None] * num_ranks()
    torch.distributed.all_gather_object(found, digests)
    everywhere = {name: [theirs[name] for theirs in found] for name in digests}
    return {
        name: values[0] if len(set(values)) == 1 else _digest("".join(values).encode())
        for name, values in everywhere.items()
    }


class FreezeProof:
    """Hashes of what is frozen before the first step and after the last, in ``freeze.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def before(self, module: nn.Module, resumed: bool, writes: bool = True) -> None:
        """Take the hashes at step 0; a resumed run keeps those of its first start.

        Args:
            writes: whether this process writes the file; all take the hashes.
        """
        now = frozen_digests(module)
        if writes and not (resumed and self.path.exists()):
            self._write({name: [value, None] for name, value in now.items()}, module)

    def after(self, module: nn.Module, writes: bool = True) -> None:
        """Take the hashes again; ``writes`` as of ``before``.

        Raises:
            RuntimeError: a frozen tensor moved, by name.
        """
        now = frozen_digests(module)
        if not writes:
            return
        record = json.loads(self.path.read_text())
        proof = {name: [before, now.get(name)] for name, (before, _) in record["frozen"].items()}
        self._write(proof, module)
        moved = [name for name, (before, after) in proof.items() if before != after]
        if moved:
            raise RuntimeError(
                f"frozen tensors moved during training: {', '.join(moved[:8])} ({len(moved)} in all)"
            )

    def _write(self, proof: dict[str, Any], module: nn.Module) -> None:
        trained = [name for name, p in module.named_parameters() if p.requires_grad]
        record = {
            "frozen": proof,
            "num_frozen_parameters": sum(size_of(p) for p in module.parameters() if not p.requires_grad),
            "num_trained_parameters": sum(size_of(p) for p in module.parameters() if p.requires_grad),
            "trained": trained,
        }
        write_whole(self.path, json.dumps(record, indent=1))


def _tensor_digest(tensor: torch.Tensor) -> str:
    raw = whole_value(tensor).contiguous().reshape(-1).view(torch.uint8)
    return _digest(raw.numpy().tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
