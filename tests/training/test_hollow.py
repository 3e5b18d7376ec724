"""A step without storage needs what the same step with numbers needs, and sizes do not matter to it."""

import pytest
import torch
from torch import nn

from omniaudio.training.hollow import Answers, hollow
from omniaudio.training.needs import needs_of_step

VOCABULARY, WIDTH = 64, 32


class Small(nn.Module):
    """Ids, a mask that is known, one that is not, attention, a codebook in a buffer."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.linear = nn.Linear(width, width)
        self.out = nn.Linear(width, VOCABULARY, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("books", torch.zeros(16, width))

    def forward(self, ids_L: torch.Tensor) -> torch.Tensor:
        x_LD = self.linear(self.embed(ids_L))
        x_1HLD = x_LD[None].unflatten(-1, (4, -1)).transpose(1, 2)
        y_1HLD = nn.functional.scaled_dot_product_attention(x_1HLD, x_1HLD, x_1HLD, is_causal=True)
        x_LD = x_LD + y_1HLD.transpose(1, 2).flatten(2)[0]
        x_LD = x_LD[ids_L != 0]
        if not bool(x_LD.isfinite().all()):
            raise FloatingPointError
        x_LD = x_LD[x_LD.isfinite().all(-1)]
        code_L = (x_LD @ self.books.T).argmin(-1)
        assert len(torch.bincount(code_L, minlength=16)) == 16
        return self.out(x_LD + self.books[code_L]).logsumexp(-1).sum()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_needs_are_those_of_a_step_with_numbers(mixed):
    ids_L = torch.arange(200) % VOCABULARY
    real = Small()
    with torch.device("meta"):
        empty = Small()
    hollow(empty)
    assert empty.out.weight is empty.embed.weight
    with Answers():
        assert empty(ids_L).item() == 1  # there is no number
    found, wanted = (needs_of_step(m, lambda m=m: m(ids_L), mixed) for m in (empty, real))
    assert found["operations"] == wanted["operations"] > 0
    assert found["bytes"] == pytest.approx(wanted["bytes"], rel=0.02)


def test_the_size_does_not_matter():
    with torch.device("meta"):
        huge = Small(width=2**20)  # 4 TB
    hollow(huge)
    found = needs_of_step(huge, lambda: huge(torch.arange(1, 50)), mixed=True)
    assert found["bytes"] > 2 * 2**40
