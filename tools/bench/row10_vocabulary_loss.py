"""Loss over a vocabulary of 152 k, forward and backward, against full logits and torch's own in chunks.

Times by column, memory in the last one; more of it than a tenth of full logits, or half of torch's own, is a failure.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import torch
from common import close, compare
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.lm.cross_entropy import LogitHead, chunked_cross_entropy

VOCABULARY, WIDTH, POSITIONS = 151_936, 896, 2048
torch.manual_seed(0)
head = LogitHead(WIDTH, VOCABULARY, bias=False)
weight_VD = head.weight
hidden_LD = torch.randn(POSITIONS, WIDTH, requires_grad=True)
label_L = torch.randint(VOCABULARY, (POSITIONS,))


def ours() -> tuple[Tensor, ...]:
    loss_L = chunked_cross_entropy(head, hidden_LD, label_L)
    return loss_L.detach(), *torch.autograd.grad(loss_L.mean(), [hidden_LD, weight_VD])


def peer() -> tuple[Tensor, ...]:
    loss_L = functional.cross_entropy(head(hidden_LD), label_L, reduction="none")
    return loss_L.detach(), *torch.autograd.grad(loss_L.mean(), [hidden_LD, weight_VD])


def torchs() -> tuple[Tensor, ...]:
    options = nn.LinearCrossEntropyOptions()
    loss = functional.linear_cross_entropy(hidden_LD, weight_VD, label_L, options=options)
    return loss.detach()[None], *torch.autograd.grad(loss, [hidden_LD, weight_VD])


def peak_mib(run: Callable[[], object]) -> float:
    """Most memory of the process during a run, over what it had before."""
    highest, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], resident())

    before, watcher = resident(), threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return (highest[0] - before) / 2**20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def same_mean(mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> str:
    return same((mine[0].mean()[None], *mine[1:]), other)


def same(mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> str:
    return "; ".join(filter(None, (close(a, b, 1e-3) for a, b in zip(mine, other, strict=True))))


gradient = weight_VD.numel() * 4 / 2**20  # all must hold it
memory, full = peak_mib(ours) - gradient, peak_mib(peer) - gradient
if memory > 0.1 * full:
    sys.exit(f"10: {memory:.0f} MiB beside the gradient, over a tenth of the {full:.0f} of full logits")
compare(
    "10 loss over 152 k words, 2,048 positions", ours, peer, same, "full logits", 1,
    f"the three products; memory beside the gradient {memory:.0f} and {full:.0f} MiB",
)  # fmt: skip
if not hasattr(nn, "LinearCrossEntropyOptions"):
    sys.exit("10: this torch has no linear_cross_entropy in chunks")
half = peak_mib(torchs) - gradient
if memory > 0.5 * half:
    sys.exit(
        f"10: {memory:.0f} MiB beside the gradient, over half of the {half:.0f} of torch's linear_cross_entropy"
    )
compare(
    "10 loss over 152 k words, 2,048 positions", ours, torchs, same_mean, "torch linear_cross_entropy", 1,
    f"the three products; memory beside the gradient {memory:.0f} and {half:.0f} MiB",
    pairs=3,
)  # fmt: skip
