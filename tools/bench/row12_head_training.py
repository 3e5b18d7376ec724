"""A training step of the audio head, books after the first on a share of 256 frames, against all frames and depths.

The share is a sixteenth, for which the target is, and the quarter that scale=mini takes.

Both take the path of a training, ``AudioLM._audio_loss``; the backbone has no part in it. Gradients are those of the
head, of the tables of codes and of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from common import close, compare
from torch import Tensor

from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.sequence.vocab import TokenSpace

SHARES = {"a sixteenth": 1 / 16, "a quarter": 1 / 4}
FRAMES = 256
FIRST_BOOK = "audio_head.heads.0.weight"
Step = tuple[Tensor, dict[str, Tensor]]
torch.manual_seed(0)


def stepper(width: int, head_dim: int, book_sizes: list[int], num_frames: int) -> Callable[[float], Step]:
    """What makes a step, always on the same frames: share -> losses (F, K) and gradients by name."""
    space = TokenSpace(40, book_sizes)
    backbone = CausalBackbone(space.vocab_size, width, 1, 2, 1, 8)
    lm = AudioLM(backbone, AudioHead(width, book_sizes, num_layers=3, head_dim=head_dim), space)
    hidden_FD = torch.randn(num_frames, width, requires_grad=True)
    label_FK = torch.stack([torch.randint(size, (num_frames,)) for size in book_sizes], dim=1)
    tables = len(book_sizes) - 1  # the last book is nobody's input here
    leaves = dict(lm.audio_head.named_parameters(prefix="audio_head")) | {"hidden": hidden_FD}
    leaves |= {f"tables.{k}": lm.audio_embed[k].weight for k in range(tables)}

    def step(share: float) -> Step:
        loss_FK = lm._audio_loss(hidden_FD, label_FK, share, 0.0)
        grads = torch.autograd.grad(loss_FK.sum(), list(leaves.values()))
        return loss_FK.detach(), dict(zip(leaves, grads, strict=True))

    return step


def same(share: float, mine: Step, other: Step) -> str:
    """The first book has the same losses and gradient; those of the others count 1/share times where chosen."""
    (sampled_FK, some), (all_FK, every) = mine, other
    chosen_F = sampled_FK[:, 1] > 0
    faults = [
        close(sampled_FK[:, 0], all_FK[:, 0], 1e-3),
        close(some[FIRST_BOOK], every[FIRST_BOOK], 1e-3),
        close(sampled_FK[chosen_F, 1:] * share, all_FK[chosen_F, 1:], 1e-3),
        "losses of frames that were not chosen" if sampled_FK[~chosen_F, 1:].any() else "",
        biased(share),
    ]
    return "; ".join(filter(None, faults))


def biased(share: float, draws: int = 300, directions: int = 8) -> str:
    """'' if gradients of a narrow head, the mean of many draws, are those of all frames within the mean's error."""
    step = stepper(16, 8, [6, 4, 3], num_frames=32)

    def gradient(of: float) -> Tensor:
        return torch.cat([grad.flatten() for grad in step(of)[1].values()])

    wanted_P = gradient(1.0)
    seen_PR = torch.randn(len(wanted_P), directions)
    drawn_NR = torch.stack([gradient(share) @ seen_PR for _ in range(draws)])
    error_R = (drawn_NR.mean(0) - wanted_P @ seen_PR) / (drawn_NR.std(0) * draws**-0.5)
    worst = float(error_R.abs().max())
    return "" if worst < 4.5 else f"mean of {draws} draws is {worst:.1f} standard errors off"


step = stepper(896, 64, [1024] * 8, FRAMES)
for words, share in SHARES.items():
    compare(
        f"12 audio head, training step of 256 frames, {words} of them for books 2 to 8",
        partial(step, share), partial(step, 1.0), partial(same, share), "all frames, all depths",
        2.8 if share == 1 / 16 else 1, "operations: 5.6" if share == 1 / 16 else "",
    )  # fmt: skip
