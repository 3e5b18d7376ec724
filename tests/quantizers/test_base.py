"""What quantizers share. Properties of choose_passing and check_num_books: test_rvq.py."""

import torch

from omniaudio.draws import Draws
from omniaudio.quantizers.base import book_stats, kept_books, scatter


def test_dropout_cuts_whole_items_from_a_depth_on() -> None:
    valid_BS = torch.arange(5) < torch.tensor([5, 3, 4] * 100)[:, None]
    keep_FK = kept_books(valid_BS, 4, 0.5, Draws(0))
    assert keep_FK.shape == (int(valid_BS.sum()), 4) and keep_FK[:, 0].all()
    assert (keep_FK[:, :-1] >= keep_FK[:, 1:]).all(), "a dropped book drops those after it"
    per_item = keep_FK.split(valid_BS.sum(1).tolist())
    assert all((rows == rows[0]).all() for rows in per_item)
    share = sum(not bool(rows[0].all()) for rows in per_item) / len(per_item)
    assert 0.4 < share < 0.6
    assert kept_books(valid_BS, 4, 0.0, Draws(0)).all() and kept_books(valid_BS, 1, 1.0, Draws(0)).all()


def test_stats_by_hand() -> None:
    x_FD = torch.tensor([[2.0], [-2.0], [2.0], [-2.0]])
    entry_KFD = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]], [[1.0], [-1.0], [1.0], [-1.0]]])
    code_FK = torch.tensor([[0, 0], [1, 0], [0, 0], [1, -1]])
    stats = book_stats(x_FD, entry_KFD, code_FK, (2, 4))
    assert stats["usage/book0"] == 1 and stats["usage/book1"] == 0.25
    torch.testing.assert_close(stats["perplexity/book0"], torch.tensor(2.0))
    torch.testing.assert_close(stats["perplexity/book1"], torch.tensor(1.0))
    assert stats["error/book0"] == 1 and stats["explained/book0"] == 0.75 and stats["explained/book1"] == 1


def test_scatter_puts_rows_back() -> None:
    valid_BS = torch.tensor([[True, False], [True, True]])
    rows = torch.tensor([[1], [2], [3]])
    assert scatter(rows, valid_BS, fill=-1)[..., 0].tolist() == [[1, -1], [2, 3]]
