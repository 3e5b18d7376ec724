"""Eight codes of a frame by the audio head with its cache, against the published loop, which starts anew each time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from common import compare
from torch import nn

from omniaudio.lm.audio_head import AudioHead, KeyValue
from omniaudio.lm.decoding import lay_out_for_decoding

BOOKS, WIDTH = 8, 896
torch.manual_seed(0)
head = AudioHead(WIDTH, [1024] * BOOKS, num_layers=3, head_dim=64).eval()
laid_out = copy.deepcopy(head)
lay_out_for_decoding(laid_out)  # as omniaudio.load does
tables = nn.ModuleList(nn.Embedding(1025, WIDTH) for _ in range(BOOKS))
hidden_FD = torch.randn(1, WIDTH)


@torch.inference_mode()
def ours() -> list[int]:
    x_FD, past, codes = hidden_FD, list[KeyValue](), list[int]()
    for book in range(BOOKS):
        codes.append(int(laid_out.step(x_FD, past)[0].argmax()))
        embed_FD = tables[book](torch.tensor(codes[-1:]))
        x_FD = embed_FD if book == 0 else x_FD + embed_FD
    return codes


@torch.inference_mode()
def peer() -> list[int]:
    codes: list[int] = []
    for book in range(BOOKS):
        embeds = [tables[i](torch.tensor([code])) for i, code in enumerate(codes)]
        prefix_FKD = torch.stack(embeds, 1).cumsum(1) if embeds else hidden_FD.new_zeros(1, 0, WIDTH)
        missing = BOOKS - 1 - prefix_FKD.shape[1]
        prefix_FKD = torch.cat(
            [prefix_FKD, prefix_FKD.new_zeros(1, missing, WIDTH)], 1
        )  # all depths, every time
        codes.append(int(head.logits(hidden_FD, prefix_FKD)[book][0].argmax()))
    return codes


def frames(run: Callable[[], list[int]], count: int = 20) -> Callable[[], list[list[int]]]:
    return lambda: [run() for _ in range(count)]


compare(
    "11 audio head, 20 frames of 8 codes", frames(ours), frames(peer),
    lambda mine, other: "" if mine == other else "other codes", "all depths for every code", 6.5,
    "operations: 8; bytes of weights: 4.7",
)  # fmt: skip
