"""First weights of modules that are trained from scratch.

Torch's defaults make a deep stack start far from linear, and Whisper's convolutions fifteen times quieter than
the positions that are added to them. What these change in the first minutes of a small tokenizer: LOG.md.

ZeRO 3 shards each module as soon as its own constructor returns: whoever draws a child's weights after that must gather
them first, or draws nothing, silently.  Under ZeRO 3 a model starts from the weights of ``strategy=single``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

BRANCH_GAIN = 0.0
"""What ``start_silent`` leaves of torch's first weights."""


@contextmanager
def whole(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Parameters that may be written as if nothing had sharded them; all ranks take what the first one writes."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0):
        yield


def shape_of(tensor: torch.Tensor) -> torch.Size:
    """Of the whole parameter: ZeRO 3 leaves a flat piece of it."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


@torch.no_grad()
def copy_whole(ours: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor] | None) -> None:
    """Copy a state into parameters and buffers, sharded or not, one by one: no device need hold them all.

    Args:
        ours: by name.
        state: the same names; None on other ranks than the first, whose values sharded parameters take.
    """
    for name, tensor in ours.items():
        with whole([tensor]):
            if state is not None:
                tensor.copy_(state[name])


@contextmanager
def unsharded() -> Iterator[bool]:
    """In here modules are built whole, in host memory; says whether ZeRO 3 shards those that are built outside."""
    deepspeed = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    if deepspeed is None or deepspeed.top_level_context is None:
        yield False
        return
    deepspeed.shutdown_init_context()
    try:
        with torch.device("cpu"):
            yield True
    finally:
        deepspeed.restore_init_context()


@contextmanager
def drawn_whole() -> Iterator[None]:
    """In here transformers draws the first weights of sharded modules too; by itself it leaves torch's defaults."""
    from transformers import PreTrainedModel

    draw = PreTrainedModel._initialize_weights

    def gathered(model: PreTrainedModel, module: nn.Module, *args: bool) -> None:
        with whole(module.parameters(recurse=False)):
            draw(model, module, *args)

    PreTrainedModel._initialize_weights = gathered
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = draw


@torch.no_grad()
def start_silent(*projections: nn.Linear | nn.Conv1d) -> None:
    """Zero what ends a residual branch: the stack starts as the identity (arXiv:2003.04887)."""
    for projection in projections:
        with whole(projection.parameters()):
            projection.weight.mul_(BRANCH_GAIN)
            if projection.bias is not None:
                projection.bias.mul_(BRANCH_GAIN)


def start_loud(*convolutions: nn.Conv1d) -> None:
    """Keep the variance through a rectifier (arXiv:1502.01852): what is added to it has the size of 1."""
    for convolution in convolutions:
        with whole(convolution.parameters()):
            nn.init.kaiming_normal_(convolution.weight)
