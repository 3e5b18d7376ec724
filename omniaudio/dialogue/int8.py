"""Linear layers in 8 bits: a quarter of their bytes, and products of integers on the CPU, faster for many rows.

Weights are rounded once, each output row with its own scale; inputs when they come, each position with its own scale
(arXiv:2208.07339, section 2, without outliers). What shares the token contract - the tokenizer - is left as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniaudio.lm.cross_entropy import LogitHead, capped
from omniaudio.lm.lora import ADAPTER

LEVELS = 127
MIN_SIZE = 2**16
"""Smaller weights stay: rounding their inputs takes longer than the product saves."""


class Int8Linear(nn.Module):
    """A linear map with rounded weights; built empty, filled by a state dict or ``of``.

    Args:
        in_width, out_width: sizes.
        bias: whether it adds one.
        cap: of its outputs, if they are logits that are capped (see ``LogitHead``).
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, in_width: int, out_width: int, bias: bool, cap: float | None = None) -> None:
        super().__init__()
        self.out_features, self.cap = out_width, cap
        self.register_buffer("weight", torch.zeros(out_width, in_width, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_width))
        self.bias = nn.Parameter(torch.zeros(out_width), requires_grad=False) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The rounded form of a layer."""
        made = cls(*sizes_of(linear))
        weight, scale_O1 = rounded(linear.weight.detach().float())
        made.weight, made.scale = weight, scale_O1[:, 0]
        if made.bias is not None:
            made.bias.data = linear.bias.detach().float()
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_width) -> (..., out_width) in the dtype of ``x``."""
        return capped(self._product(x), self.cap)

    def _product(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            weight = (self.weight * self.scale[:, None]).to(x.dtype)
            return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
        rows, scale = rounded(x.reshape(-1, x.shape[-1]).float())
        out = torch._int_mm(rows, self.weight.t()).float() * scale * self.scale
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], len(self.weight))


def sizes_of(linear: nn.Linear) -> tuple[int, int, bool, float | None]:
    """What an Int8Linear in place of a layer is built of."""
    cap = linear.cap if isinstance(linear, LogitHead) else None
    return linear.in_features, linear.out_features, linear.bias is not None, cap


def rounded(x_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to integers and their scales (R, 1): the largest of each row is 127."""
    scale_R1 = x_RD.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / LEVELS
    return (x_RD / scale_R1).round().to(torch.int8), scale_R1


def to_int8(module: nn.Module, empty: bool = False) -> nn.Module:
    """Replace the linear layers below ``module``, but those that share their weight with another; returns it.

    Args:
        empty: do not round: the state dict that is loaded next is of rounded layers.
    """
    owners: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for parent_name, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            if (
                type(child) not in (nn.Linear, LogitHead)
                or child.weight.numel() < MIN_SIZE
                or owners[id(child.weight)] > 1
                or ADAPTER in f"{name}.{parent_name}"  # peft takes their dtype for that of the inputs
            ):
                continue
            setattr(parent, name, Int8Linear(*sizes_of(child)) if empty else Int8Linear.of(child))
    return module
