"""What the vocoders share: weight norm that folds, residual blocks, the Snake activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LEAK = 0.1


def maybe_weight_norm(module: ModuleT, enabled: bool) -> ModuleT:
    """Weight normalization (arXiv:1602.07868) around a convolution, or the convolution itself."""
    return parametrizations.weight_norm(module) if enabled else module


def fold_weight_norm(module: nn.Module) -> None:
    """Replace every normalised weight below ``module`` by its value: fewer tensors, faster, same output."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)


class FoldableVocoder(nn.Module):
    """Base of the vocoders that train with weight norm."""

    def fold_weight_norm(self) -> dict[str, Any]:
        """Fold in place. Returns the constructor arguments that now differ, for the export's config."""
        fold_weight_norm(self)
        return {"weight_norm": False}


def same_padding(kernel: int, dilation: int = 1) -> int:
    """Padding that keeps the length (odd kernels)."""
    return (kernel - 1) * dilation // 2


def steps_reached(*modules: nn.Module) -> int:
    """Steps on either side that convolutions of kept length see, one after the other: the sum of their paddings."""
    convs = (part for module in modules for part in module.modules() if isinstance(part, nn.Conv1d))
    return sum(int(conv.padding[0]) for conv in convs)


def init_conv(module: nn.Module) -> None:
    """The small normal start of the HiFi-GAN family."""
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        nn.init.normal_(module.weight, 0.0, 0.01)


class Snake(nn.Module):
    """x + sin(a x)^2 / a with a learned a for each channel (arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x_BDN: Tensor) -> Tensor:
        """(B, D, N) -> (B, D, N)."""
        alpha = self.alpha[:, None]
        return x_BDN + torch.sin(x_BDN * alpha).square() / (alpha + 1e-9)


class LeakyReLU(nn.LeakyReLU):
    """Leaky ReLU with the family's slope; takes (and ignores) a channel count, like Snake."""

    def __init__(self, channels: int = 0) -> None:
        super().__init__(LEAK)


class ResBlock1(nn.Module):
    """Dilated and plain convolution in turn, residual around each pair (arXiv:2010.05646, appendix A).

    Args:
        channels: D.
        kernel: of all convolutions.
        dilations: of the first convolution of each pair.
        activation: channels -> module.
        weight_norm: normalise weights.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        dilations: Sequence[int],
        activation: Callable[[int], nn.Module] = LeakyReLU,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            layer = nn.Conv1d(
                channels, channels, kernel, dilation=dilation, padding=same_padding(kernel, dilation)
            )
            init_conv(layer)
            return maybe_weight_norm(layer, weight_norm)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations1 = nn.ModuleList(activation(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(activation(channels) for _ in dilations)

    def forward(self, x_BDN: Tensor) -> Tensor:
        """(B, D, N) -> (B, D, N)."""
        for conv1, conv2, act1, act2 in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x_BDN = x_BDN + conv2(act2(conv1(act1(x_BDN))))
        return x_BDN


class ResBlock2(nn.Module):
    """One dilated convolution a residual step (the light form of V3)."""

    def __init__(
        self, channels: int, kernel: int, dilations: Sequence[int], weight_norm: bool = True
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for dilation in dilations:
            layer = nn.Conv1d(
                channels, channels, kernel, dilation=dilation, padding=same_padding(kernel, dilation)
            )
            init_conv(layer)
            self.convs.append(maybe_weight_norm(layer, weight_norm))

    def forward(self, x_BDN: Tensor) -> Tensor:
        """(B, D, N) -> (B, D, N)."""
        for conv in self.convs:
            x_BDN = x_BDN + conv(F.leaky_relu(x_BDN, LEAK))
        return x_BDN
