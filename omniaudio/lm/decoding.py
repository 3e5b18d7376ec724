"""How weights lie in memory while one reply is generated on a CPU.

Shape suffixes here: O outputs, I inputs, P panels, C columns of a panel, R rows, K depths.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.lm.audio_head import DepthLinear
from omniaudio.lm.cross_entropy import LogitHead, capped
from omniaudio.lm.lora import ADAPTER

LARGE_PAGE = 2**21
"""Bytes of a large page of memory."""
SMALL = 2**17
"""Weights of fewer bytes stay as they are: a caller's overhead is more than their reading."""
PANEL = 32
"""Outputs of a panel: 16 and 32 are read fastest by one row, 64 and more slower than plain rows (LOG.md)."""


def lay_out_for_decoding(model: nn.Module) -> None:
    """Hold the weights of linear maps in panels, in place: a few outputs of all inputs, panel after panel.

    A product of one row then reads memory nearly as fast as a sum does, where rows, which give one dot product each,
    reach a third of it and columns half; with many rows it takes as long as before (``tools/bench``, rows 11 and 13).
    Small weights stay, adapters, and what modules share (a tied embedding). Not for a training: what a state dict then
    holds is ``panels``.
    """
    owners = Counter(id(part) for module in model.modules() for part in module.parameters(recurse=False))
    made: nn.Module
    # Lists of parents alone: a weight that was laid out anew is let go at once.
    parents = [
        module for path, module in model.named_modules() if ADAPTER not in path and any(module.children())
    ]
    for parent in parents:
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear | DepthLinear) or owners[id(child.weight)] > 1:
                continue
            if child.weight.device.type == "cpu" and child.weight.nbytes >= SMALL:
                made = PanelLinear(child) if isinstance(child, nn.Linear) else PanelDepthLinear(child)
                setattr(parent, name, made)


class PanelLinear(nn.Linear):
    """A linear map whose weights lie in panels; one to logits caps them as before.

    Args:
        linear: the map; it is not changed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.panels = nn.Parameter(in_panels(linear.weight.detach()), requires_grad=False)
        self.bias = linear.bias
        self.cap = linear.cap if isinstance(linear, LogitHead) else None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights (O, I) as the map had them: a copy."""
        return from_panels(self.panels, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        out_RO = times_panels(x.reshape(-1, self.in_features), self.panels)[:, : self.out_features]
        if self.bias is not None:
            out_RO = out_RO + self.bias
        return capped(out_RO.view(*x.shape[:-1], self.out_features), self.cap)


class PanelDepthLinear(DepthLinear):
    """A DepthLinear whose weights lie in panels, depth after depth.

    Args:
        linear: the map; it is not changed.
    """

    def __init__(self, linear: DepthLinear) -> None:
        nn.Module.__init__(self)
        self.num_depths, self.out_width = linear.num_depths, len(linear.weight)
        depths = linear.weight.detach().chunk(self.num_depths, dim=1)
        self.panels = nn.ParameterList(
            nn.Parameter(in_panels(depth), requires_grad=False) for depth in depths
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights (O, K * I) as the map had them: a copy."""
        return torch.cat([from_panels(panels, self.out_width) for panels in self.panels], dim=1)

    def step(self, x_FD: Tensor, depth: int) -> Tensor:
        """One depth."""
        return times_panels(x_FD, self.panels[depth])[:, : self.out_width]


def in_panels(weight_OI: Tensor) -> Tensor:
    """(P, I, C) in large pages; zeros fill the last panel."""
    padded_OI = functional.pad(weight_OI, (0, 0, 0, -len(weight_OI) % PANEL))
    return _in_large_pages(padded_OI.unflatten(0, (-1, PANEL)).transpose(1, 2))


def from_panels(panels_PIC: Tensor, num_outputs: int) -> Tensor:
    """The weights (O, I) again."""
    return panels_PIC.transpose(1, 2).flatten(0, 1)[:num_outputs]


def times_panels(x_RI: Tensor, panels_PIC: Tensor) -> Tensor:
    """(R, P * C): what the last panel has too many is zero."""
    out_PRC = torch.bmm(x_RI.expand(len(panels_PIC), *x_RI.shape), panels_PIC)
    return out_PRC.transpose(0, 1).flatten(1)


def _in_large_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy, which Linux is asked to map in large pages: a tenth less time for what reads it all.

    Small tensors, and those of other systems, have pages as usual.
    """
    if tensor.nbytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor.contiguous()
    memory = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
