"""Checkpoints of DeepSpeed's ZeRO: read without running code, and by another number of processes than wrote them.

DeepSpeed leaves a file a process and gives it back to that process alone. How it is laid out follows from the number
of processes: ZeRO 1 and 2 lay the parameters of a group end to end and cut that into equal pieces, ZeRO 3 cuts every
parameter by itself. Here the file that a process would have found is made of those that are there. They are mapped,
so that a process reads what becomes its own and no more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omniaudio.errors import UserError

MODEL, OPTIMIZER = "model_states.pt", "optim_states.pt"
ZERO12, ZERO3 = "zero1 or zero2", "zero3"
WEIGHTS = {ZERO12: "single_partition_of_fp32_groups", ZERO3: "fp32_flat_groups"}
MOMENTS = {ZERO12: "base_optimizer_state", ZERO3: "optimizer_state_dict"}
"""DeepSpeed's names of the float32 weights, and of the state of the optimizer that moves them."""


def load_without_code(path: str, map_location: Any = None, mapped: bool = False) -> Any:
    """A file of a DeepSpeed checkpoint; DeepSpeed's own reader would run whatever a pickle holds.

    Args:
        mapped: tensors stay in the file until they are used.

    Raises:
        UserError: it holds more than tensors, plain values and the few classes that DeepSpeed writes.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    place = "cpu" if mapped else map_location
    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        try:
            return torch.load(path, map_location=place, mmap=mapped, weights_only=True)
        except Exception as error:  # torch has no name of its own for what it refuses
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: not a checkpoint of this training ({reason})") from error


def check_checkpoint(checkpoint: Path, strategy: str) -> None:
    """Processes may change on the way, and so may some strategies, but not how a checkpoint is written.

    Raises:
        UserError: this one was written under a strategy whose files ``strategy`` does not read.
    """
    kind = kind_of(checkpoint)
    if strategy not in kind.split(" or "):
        raise UserError(
            f"{checkpoint}: written under {kind}, strategy={strategy} does not read it; "
            f"set strategy to {kind}, or train anew under another tag"
        )


def kind_of(checkpoint: Path) -> str:
    """The strategies that read a checkpoint: a file outside of ZeRO, else a folder."""
    if not checkpoint.is_dir():
        return "single or ddp"
    return ZERO3 if any(checkpoint.rglob(f"zero_pp_rank_*{MODEL}")) else ZERO12


def num_processes(checkpoint: Path) -> int:
    """How many processes have written a checkpoint of ZeRO."""
    return len(_by_rank(checkpoint, OPTIMIZER))


class Reshard:
    """Stands in for the reader of DeepSpeed's engine.

    Args:
        checkpoint: folder that others have written.
        rank: of this process, among ``processes``.
        lengths: numbers in this process's flat piece of each group of parameters.
    """

    def __init__(self, checkpoint: Path, rank: int, processes: int, lengths: Sequence[int]) -> None:
        self.models, self.optimizers = (_by_rank(checkpoint, name) for name in (MODEL, OPTIMIZER))
        self.kind = kind_of(checkpoint)
        self.rank, self.processes, self.lengths = rank, processes, list(lengths)

    def model_files(self, *_: Any) -> list[str]:
        """The file of the first process, instead of one of this rank: what is not cut is the same in all."""
        return [str(self.models[0])]

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """What the file ``path`` would hold if as many processes had written it as there are now."""
        return self._optimizer() if path.endswith(OPTIMIZER) else self._model()

    def _model(self) -> dict[str, Any]:
        found: dict[str, Any] = load_without_code(str(self.models[0]), map_location="cpu")
        found["dp_world_size"] = self.processes
        if self.kind == ZERO3 and found["frozen_param_fragments"]:
            files = [load_without_code(str(path), mapped=True) for path in self.models]
            found["frozen_param_fragments"] = {
                name: self._cut(
                    [file["frozen_param_fragments"][name].flatten() for file in files], [shape.numel()]
                )
                for name, shape in found["frozen_param_shapes"].items()
            }
        return found

    def _optimizer(self) -> dict[str, Any]:
        files = [load_without_code(str(path), mapped=True) for path in self.optimizers]
        states = [file["optimizer_state_dict"] for file in files]
        shapes = load_without_code(str(self.models[0]), mapped=True)["param_shapes"]
        weights, moments = WEIGHTS[self.kind], MOMENTS[self.kind]
        flat, state = [], {}
        for i, (group, length) in enumerate(zip(shapes, self.lengths, strict=True)):
            sizes = [shape.numel() for shape in group.values()]
            flat.append(self._piece([s[weights][i] for s in states], sizes, length))
            known = [s[moments]["state"][i] for s in states]
            state[i] = {  # the count of steps is a number, the same for all
                name: self._piece([k[name] for k in known], sizes, length)
                if torch.is_tensor(value) and value.dim()
                else value
                for name, value in known[0].items()
            }
        whole = {**states[0], weights: flat, moments: {**states[0][moments], "state": state}}
        return {**files[0], "optimizer_state_dict": whole}

    def _piece(self, pieces: Sequence[Tensor], sizes: Sequence[int], length: int) -> Tensor:
        found = (
            self._cut(pieces, sizes) if self.kind == ZERO3 else stretch(pieces, self.rank * length, length)
        )
        assert len(found) == length, f"{len(found)} numbers, not {length}"
        return found

    def _cut(self, pieces: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """This rank's share of each tensor of ``sizes`` numbers, one behind the other, as ZeRO 3 cuts them."""
        found, start = [], 0
        for size in sizes:
            old, new = (-(-size // count) for count in (len(pieces), self.processes))
            shares = [piece[start : start + old] for piece in pieces]
            found.append(stretch(shares, self.rank * new, new, end=size))
            start += old
        return torch.cat(found)


def stretch(pieces: Sequence[Tensor], start: int, length: int, end: int | None = None) -> Tensor:
    """``length`` numbers from ``start`` on of flat pieces that follow each other; zeros from ``end`` on."""
    last = start + length if end is None else min(start + length, end)
    found, at = [pieces[0][:0]], 0
    for piece in pieces:
        found.append(piece[max(0, start - at) : max(0, last - at)])
        at += len(piece)
    whole = torch.cat(found)
    return F.pad(whole, (0, length - len(whole)))


def _by_rank(checkpoint: Path, name: str) -> list[Path]:
    """Files of a kind, in the order of the ranks that wrote them."""
    ranks = {path: re.search(r"zero_pp_rank_(\d+)_", path.name) for path in checkpoint.rglob("*" + name)}
    return sorted(ranks, key=lambda path: int(rank[1]) if (rank := ranks[path]) else 0)
