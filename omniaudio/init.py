"""First weights of modules that are trained from scratch.

Torch's defaults make a deep stack start far from linear, and Whisper's convolutions fifteen times quieter than
the positions that are added to them. What these change in the first minutes of a small tokenizer: LOG.md.
"""

from __future__ import annotations

import torch
from torch import nn

BRANCH_GAIN = 0.0
"""What ``start_silent`` leaves of torch's first weights."""


@torch.no_grad()
def start_silent(*projections: nn.Linear | nn.Conv1d) -> None:
    """Zero what ends a residual branch: the stack starts as the identity (arXiv:2003.04887)."""
    for projection in projections:
        projection.weight.mul_(BRANCH_GAIN)
        if projection.bias is not None:
            projection.bias.mul_(BRANCH_GAIN)


def start_loud(*convolutions: nn.Conv1d) -> None:
    """Keep the variance through a rectifier (arXiv:1502.01852): what is added to it has the size of 1."""
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight)
