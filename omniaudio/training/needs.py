"""What a training needs of its devices, memory and operations, before anything of that size is built.

Parameters are counted on modules without storage. Model states follow from their number (arXiv:1910.02054, section 3).
Activations and operations are measured: the same stage with its stacks cut to one and two layers takes training steps
in which tensors have shapes and no numbers; both grow in a line with layers and with the size of the batch.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from omniaudio.training.hollow import Answers

FP32, BF16 = 4, 2
ADAM = 2 * FP32  # bytes a parameter: both moments
BUCKET = 200_000_000  # numbers that ZeRO collects before it sends them, under Lightning
GATHERED = 1_000_000_000  # parameters that ZeRO 3 has whole at once, if there are as many
UNITS = (8, 16)  # sizes of the two measured batches


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of one module."""

    total: int
    learning: int
    buffers: int

    def __add__(self, other: ParameterCount) -> ParameterCount:
        return ParameterCount(
            self.total + other.total, self.learning + other.learning, self.buffers + other.buffers
        )


@dataclass(frozen=True)
class States:
    """Bytes on each device that stay from step to step, and in ``host`` memory beside it."""

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def count_parameters(module: nn.Module) -> ParameterCount:
    """Shared parameters count once; buffers are all that the module has (codes of the books, positions, filters)."""
    parameters = list(module.parameters())
    return ParameterCount(
        total=sum(p.numel() for p in parameters),
        learning=sum(p.numel() for p in parameters if p.requires_grad),
        buffers=sum(b.numel() for b in module.buffers()),
    )


@dataclass(frozen=True)
class Sharing:
    """How what a training holds is spread.

    Args:
        strategy: single, ddp, zero1, zero2, zero3.
        num_devices: of all nodes.
        mixed: bfloat16 computation. Outside ZeRO the weights stay in float32; ZeRO keeps a float32 copy of what
            learns among the states that it shares out.
        offload: ZeRO: that copy and AdamW, from stage 2 gradients, in stage 3 weights stand in host memory.
        accumulate: batches of a step.
    """

    strategy: str
    num_devices: int
    mixed: bool
    offload: bool = False
    accumulate: int = 1

    @property
    def stage(self) -> int:
        """Of ZeRO; 0 outside of it."""
        return int(self.strategy[-1]) if self.strategy.startswith("zero") else 0

    @property
    def computed(self) -> int:
        """Bytes of a weight that ZeRO computes with."""
        return BF16 if self.mixed else FP32

    @property
    def summed(self) -> int:
        """Bytes of a gradient: ZeRO 3, and 2 without offload, sums those of several batches in float32."""
        wide = self.stage == 3 or (self.stage == 2 and not self.offload)
        return FP32 if wide and self.accumulate > 1 else self.computed


def model_states(count: ParameterCount, sharing: Sharing) -> States:
    """Bytes of weights, gradients and AdamW on each device."""
    buffers, stage = FP32 * count.buffers, sharing.stage
    if not stage:
        copies = 2 if sharing.strategy == "ddp" else 1  # DDP reduces in buckets of its own
        return States(
            FP32 * count.total + buffers, copies * FP32 * count.learning, float(ADAM * count.learning)
        )
    shared = [sharing.num_devices if stage >= needed else 1 for needed in (3, 2, 1)]
    weights = sharing.computed * count.total / shared[0]
    gradients = sharing.summed * count.learning / shared[1]
    optimizer = (ADAM + FP32) * count.learning / shared[2]
    if not sharing.offload:
        return States(weights + buffers, gradients, optimizer)
    away = [weights if stage == 3 else 0.0, gradients if stage >= 2 else 0.0, optimizer]
    return States(weights + buffers - away[0], gradients - away[1], 0.0, host=sum(away))


@dataclass(frozen=True)
class Memory:
    """What a device holds beside the activations of a batch, in bytes.

    ``workspace`` is ZeRO's during forward and backward: buckets of gradients, weights gathered whole. ``update`` is
    the optimizer's, when activations are gone.
    """

    states: States
    workspace: float
    update: float

    def peak(self, activations: float) -> float:
        return self.states.total + max(self.workspace + activations, self.update)

    def room(self, limit: float) -> float:
        """Bytes that activations may have; negative if nothing fits."""
        if self.states.total + self.update > limit:
            return limit - self.states.total - self.update
        return limit - self.states.total - self.workspace


def device_memory(count: ParameterCount, sharing: Sharing) -> Memory:
    """See ``model_states``; AdamW takes a square root of all that it moves, and ZeRO widens the gradients before."""
    states = model_states(count, sharing)
    if not sharing.stage:
        return Memory(states, 0.0, float(FP32 * count.learning))
    moved = 0 if sharing.offload else count.learning / sharing.num_devices
    gathered = min(GATHERED, count.total) if sharing.stage == 3 else BUCKET
    widened = sharing.summed < FP32
    return Memory(states, float(sharing.computed * (BUCKET + gathered)), FP32 * moved * (2 if widened else 1))


class PeakMemory(TorchDispatchMode):
    """Bytes of tensors made inside that are ``alive``, and most that were at once; ``with`` around a step.

    Storages count once, whatever views there are; those on meta are none. What a kernel allocates and frees by itself
    is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.alive = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Leave out storages that were there before."""
        for tensor in tensors:
            self._watch(tensor, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                self._watch(leaf, leaf.untyped_storage().nbytes())
        return made

    def _watch(self, tensor: Tensor, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        name = storage._cdata
        if name in self._known:
            return
        self.alive += num_bytes
        self.peak = max(self.peak, self.alive)

        def gone(_: Any) -> None:
            self.alive -= num_bytes
            del self._known[name]

        self._known[name] = weakref.ref(storage, gone)


@dataclass(frozen=True)
class Stack:
    """A place in the config that says how many layers a part has."""

    path: tuple[str, ...]
    num_layers: int


def stacks_of(model: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[Stack]:
    """All ``num_layers`` of a config, in its order."""
    found = []
    for key, value in model.items():
        if key == "num_layers" and isinstance(value, int):
            found.append(Stack((*path, key), value))
        elif isinstance(value, Mapping):
            found += stacks_of(value, (*path, key))
    return found


def with_layers(model: Mapping[str, Any], layers: Mapping[tuple[str, ...], int]) -> dict[str, Any]:
    """A copy of the config with other numbers of layers."""
    changed = copy.deepcopy(dict(model))
    for path, num_layers in layers.items():
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = num_layers
    return changed


@dataclass(frozen=True)
class Line:
    """A need of a step: ``fixed``, and ``per_unit`` for each unit of the batch."""

    fixed: float
    per_unit: float

    def of(self, num_units: float) -> float:
        return self.fixed + self.per_unit * num_units


def draw_out(
    model: Mapping[str, Any], measure: Callable[[dict[str, Any], int], Mapping[str, float]]
) -> dict[str, Line]:
    """From steps with few layers to the whole model.

    A need is (a + sum of b_i layers_i) + units (c + sum of d_i layers_i); two depths of every stack and two sizes of
    the batch (``UNITS``) give all of the numbers.

    Args:
        model: config of the whole model.
        measure: (config with few layers, units of the batch) -> needs by name.
    """
    stacks = stacks_of(model)
    shallow = {stack.path: 1 for stack in stacks}

    def lines(layers: Mapping[tuple[str, ...], int]) -> dict[str, Line]:
        small, large = (measure(with_layers(model, layers), units) for units in UNITS)
        slopes = {name: (large[name] - small[name]) / (UNITS[1] - UNITS[0]) for name in small}
        return {name: Line(small[name] - slope * UNITS[0], slope) for name, slope in slopes.items()}

    base = lines(shallow)
    total = dict(base)
    for stack in stacks:
        if stack.num_layers > 1:
            for name, deeper in lines({**shallow, stack.path: 2}).items():
                more = stack.num_layers - 1
                fixed = total[name].fixed + more * (deeper.fixed - base[name].fixed)
                total[name] = Line(
                    fixed, total[name].per_unit + more * (deeper.per_unit - base[name].per_unit)
                )
    return {name: Line(max(0.0, line.fixed), max(0.0, line.per_unit)) for name, line in total.items()}


def needs_of_step(module: nn.Module, loss: Callable[[], Tensor], mixed: bool) -> dict[str, float]:
    """One forward and backward pass: ``bytes`` at its peak beside weights and gradients, and ``operations``.

    Operations are those of matrix products, convolutions and attention, a multiplication and an addition as two.
    The module may be ``hollow``.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    counter, watch = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION), PeakMemory()
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]  # its hooks would keep what is recomputed
    watch.ignore(tensor for p in module.parameters() for tensor in (p, p.grad) if tensor is not None)
    watch.ignore(module.buffers())
    with counter, watch, Answers():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            total = loss()
        total.backward()
    return {"bytes": float(watch.peak), "operations": float(counter.get_total_flops())}


class _NoModules:
    """In place of torch's bookkeeping of the module at hand: operations are counted as one sum."""

    parents: ClassVar[set[str]] = {"Global"}

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def _attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward(
    grad: Any, q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Kernels that torch's counter does not know."""
