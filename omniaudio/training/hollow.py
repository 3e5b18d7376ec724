"""Steps without storage: a module of any size goes forward and backward within seconds, and nothing is computed.

Its parameters and buffers know shape, type and device only (torch's fake tensors), and so does all that follows from
them. What does not (ids, lengths, labels, draws) is real, so that code which looks at it goes its usual way. A
question about a number that is not there is answered with yes: all are finite, all are chosen, a count is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


def hollow(module: nn.Module) -> None:
    """Put tensors without storage, on the CPU by name, in place of a module's parameters and buffers on meta."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}

    def without_storage(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:  # shared ones stay shared
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            learns = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if learns else empty
        return made[id(tensor)]

    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for tensors in tables:
            on_meta = {
                name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.is_meta
            }
            tensors.update({name: without_storage(tensor) for name, tensor in on_meta.items()})


class Answers(TorchDispatchMode):
    """Answers what operations ask of the numbers of tensors without storage; others go as they do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return 1
        if func is aten.nonzero.default:
            return _all_of(args[0]).nonzero()
        if func is aten.bincount.default:
            return args[0].new_zeros(args[2] if len(args) > 2 else kwargs.get("minlength", 0))
        if func in INDEXED:
            args = (args[0], _places(args[1]), *args[2:])
        return func(*args, **kwargs)


def _all_of(chosen: Tensor) -> Tensor:
    return torch.ones(chosen.shape, dtype=torch.bool) if isinstance(chosen, FakeTensor) else chosen


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with the places that masks choose instead of masks, whose number could not be known."""
    places: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool
        places += _all_of(index).nonzero().unbind(1) if masks else [index]  # type: ignore[arg-type]
    return places
