import math

import pytest
import torch

from omniaudio.metrics.codes import book_use


def test_hand_values():
    codes_SK = torch.tensor([[0, 5], [1, 5], [0, 5], [1, 5], [-1, -1]])
    first, second = book_use([codes_SK], [4, 8])
    assert (first.num_frames, first.usage) == (4, 0.5)
    assert first.perplexity == pytest.approx(2.0)  # two entries, equally often
    assert (second.usage, second.perplexity) == (1 / 8, pytest.approx(1.0))


def test_perplexity_is_exp_of_entropy():
    codes_BSK = torch.tensor([[[0], [0], [0]], [[1], [-1], [-1]]])
    (book,) = book_use([codes_BSK], [2])
    assert book.perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_items_add_up():
    codes_SK = torch.randint(16, (50, 2), generator=torch.Generator().manual_seed(0))
    assert book_use([codes_SK], [16, 16]) == book_use([codes_SK[:20], codes_SK[20:]], [16, 16])


def test_nothing_counted():
    (book,) = book_use([], [4])
    assert (book.num_frames, book.usage, book.perplexity) == (0, 0.0, 1.0)
