"""One book: averages by hand, shrink, restarts, sampling, start, and agreement of two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from omniaudio.draws import Draws
from omniaudio.quantizers.codebook import Codebook, CodebookTraining, agreed_rows
from omniaudio.quantizers.rvq import ResidualVQ


def make_book(embed_VD: Tensor, **options: float | None) -> Codebook:
    book = Codebook(embed_VD.shape[1], len(embed_VD), CodebookTraining(**options))  # type: ignore[arg-type]
    book.embed.copy_(embed_VD)
    book.embed_avg.copy_(embed_VD)
    book.cluster_size.fill_(1.0)
    return book


def choose(book: Codebook, x_FD: Tensor, step: int = 0) -> Tensor:
    return book.choose(x_FD, places(x_FD), Draws(step))


def places(x_FD: Tensor) -> Tensor:
    return torch.arange(len(x_FD))


def test_moving_averages_by_hand() -> None:
    book = make_book(torch.tensor([[0.0, 0.0], [10.0, 10.0]]), decay=0.9, shrink=0.5)
    x_FD = torch.tensor([[1.0, 0.0], [3.0, 2.0], [10.0, 12.0]])
    code_F = choose(book, x_FD)
    assert code_F.tolist() == [0, 0, 1]
    book.learn(x_FD, code_F, places(x_FD))
    torch.testing.assert_close(book.cluster_size, torch.tensor([0.9 + 0.2, 0.9 + 0.1]))
    # sums: 0.9 x old + 0.1 x new, then half of it by the shrink
    torch.testing.assert_close(book.embed_avg, torch.tensor([[0.2, 0.1], [5.0, 5.1]]))
    torch.testing.assert_close(book.embed, torch.tensor([[0.2 / 1.1, 0.1 / 1.1], [5.0, 5.1]]))


def test_distances_are_those_of_cdist() -> None:
    torch.manual_seed(0)
    book = make_book(torch.randn(7, 5))
    x_FD = torch.randn(11, 5)
    torch.testing.assert_close(book.distances(x_FD), torch.cdist(x_FD, book.embed) ** 2, atol=1e-4, rtol=1e-4)


def test_unused_codes_come_back_as_inputs_of_the_batch() -> None:
    torch.manual_seed(0)
    book = make_book(torch.tensor([[0.0], [1000.0], [2000.0]]), restart_after=3, decay=0.9)
    x_FD = torch.randn(20, 1)
    restarts = [float(book.learn(x_FD, choose(book, x_FD), places(x_FD))) for _ in range(3)]
    assert restarts == [0, 0, 2]
    assert all((value == x_FD).any() for value in book.embed[1:].flatten()[:, None, None])


def test_a_replaced_code_counts_as_used_when_it_is_chosen_and_is_replaced_again_when_not() -> None:
    book = make_book(torch.tensor([[0.0], [1000.0]]), restart_after=3)
    x_FD, never_F = torch.randn(20, 1), torch.zeros(20, dtype=torch.int64)
    usage, restarts = [], []
    for _ in range(9):
        restarts.append(float(book.learn(x_FD, never_F, places(x_FD))))
        usage.append(float(book.stats(never_F)["usage"]))
    assert restarts == [0, 0, 1] * 3
    assert usage == [1, 1] + [0.5] * 7
    book.learn(x_FD, 1 - never_F, places(x_FD))
    assert book.stats(never_F)["usage"] == 1


def test_without_restarts_an_unused_code_shrinks_and_stays_finite() -> None:
    book = make_book(torch.tensor([[0.0], [8.0]]), restart_after=None, decay=0.5, shrink=0.01)
    x_FD = torch.ones(4, 1)
    for _ in range(200):  # its average count is 0.5 ** 200
        assert book.learn(x_FD, torch.zeros(4, dtype=torch.int64), places(x_FD)) == 0
    torch.testing.assert_close(book.embed[1], torch.tensor([8 * 0.99**200]), rtol=1e-3, atol=0)
    assert book.stats(torch.zeros(4, dtype=torch.int64))["usage"] == 0.5


def test_gumbel_sampling_spreads_with_temperature_and_only_in_training() -> None:
    torch.manual_seed(0)
    embed_VD = torch.tensor([[0.0], [1.0]])
    x_FD = torch.full((2000, 1), 0.4)  # squared distances 0.16 and 0.36
    book = make_book(embed_VD, gumbel_temperature=1.0)
    share = choose(book, x_FD).float().mean()
    expected = 1 / (1 + torch.exp(torch.tensor((0.36 - 0.16) / 0.16)))
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)
    assert choose(book.eval(), x_FD).sum() == 0
    assert choose(make_book(embed_VD, gumbel_temperature=0.0), x_FD).sum() == 0


@pytest.mark.parametrize("num_samples", [3, 10, 200])
def test_start_takes_codes_from_the_first_batch_once(num_samples: int) -> None:
    torch.manual_seed(0)
    book = Codebook(4, 10, CodebookTraining())
    x_FD = torch.randn(num_samples, 4) + 50
    book.start(x_FD, places(x_FD))
    assert (book.embed.mean(-1) - 50).abs().max() < 5
    assert len(book.embed.unique(dim=0)) == 10 or num_samples == 3
    assert (book.cluster_size > 0).all()
    before = book.embed.clone()
    book.start(x_FD - 100, places(x_FD))
    assert torch.equal(book.embed, before)


def test_kmeans_finds_two_clusters() -> None:
    torch.manual_seed(0)
    book = Codebook(1, 2, CodebookTraining(kmeans_steps=10))
    x_FD = torch.cat([torch.randn(30, 1) * 0.1, torch.randn(50, 1) * 0.1 + 8])
    book.start(x_FD, places(x_FD))
    torch.testing.assert_close(book.embed.sort(0).values, torch.tensor([[0.0], [8.0]]), atol=0.1, rtol=0)


def test_books_follow_the_device_but_not_the_type() -> None:
    book = Codebook(4, 10, CodebookTraining()).to(torch.bfloat16)
    assert book.embed.dtype == book.cluster_size.dtype == torch.float32
    assert book.unused_steps.dtype == torch.int64
    assert book.to("meta").embed.is_meta


def test_code_minus_one_gives_zeros() -> None:
    book = make_book(torch.tensor([[5.0], [6.0]]))
    assert book.lookup(torch.tensor([[-1, 1]])).tolist() == [[[0.0], [6.0]]]


X_FD = torch.tensor([[0.5], [1.0], [3.0], [5.0]])
NUM_ITEMS, NUM_FRAMES, STEPS = 10, 12, 8


GUMBEL = (0.0, 0.2)
"""Nearest codes, and sampled ones (which leave nothing unused)."""


def _train_rvq(rank: int, num_ranks: int, gumbel: float) -> tuple[ResidualVQ, list[float]]:
    """Some steps on the items of every step that fall to a rank, and the restarts of all books."""
    quantizer = ResidualVQ(6, [16, 8, 4], restart_after=3, gumbel_temperature=gumbel, kmeans_steps=3).train()
    restarts = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        z_BSD = torch.randn(NUM_ITEMS, NUM_FRAMES, 6, generator=generator) * (1 + step)
        length_B = torch.randint(1, NUM_FRAMES + 1, (NUM_ITEMS,), generator=generator)
        valid_BS = torch.arange(NUM_FRAMES) < length_B[:, None]
        stats = quantizer(z_BSD[rank::num_ranks], valid_BS[rank::num_ranks], draws=Draws(step)).stats
        restarts += [float(stats[f"restarts/book{book}"]) for book in range(3)]
    return quantizer, restarts


def _train_on_a_rank(rank: int, folder: str, num_ranks: int) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous{num_ranks}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_ranks)
    torch.manual_seed(rank)
    book = make_book(torch.tensor([[0.0], [4.0]]))
    mine_FD = X_FD[rank::num_ranks]
    book.learn(mine_FD, choose(book, mine_FD), torch.arange(4)[rank::num_ranks])
    saved: dict[str, object] = {"learned": book.state_dict()}
    for gumbel in GUMBEL:
        quantizer, restarts = _train_rvq(rank, num_ranks, gumbel)
        saved |= {f"quantizer{gumbel}": quantizer.state_dict(), f"restarts{gumbel}": restarts}
    torch.save(saved, f"{folder}/{num_ranks}-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_books_are_those_of_one_process(tmp_path: Path, num_ranks: int) -> None:
    """First codes, samples, averages, restarts: what one process makes of a global batch, several make of it."""
    multiprocessing.spawn(_train_on_a_rank, args=(str(tmp_path), num_ranks), nprocs=num_ranks)
    ranks = [torch.load(tmp_path / f"{num_ranks}-{rank}.pt", weights_only=True) for rank in range(num_ranks)]
    alone = make_book(torch.tensor([[0.0], [4.0]]))
    alone.learn(X_FD, choose(alone, X_FD), places(X_FD))
    torch.testing.assert_close(dict(alone.state_dict()), dict(ranks[0]["learned"]))
    for gumbel in GUMBEL:
        quantizer, restarts = _train_rvq(0, 1, gumbel)
        assert gumbel or sum(restarts) > 0, "nothing was replaced: the test proves nothing"
        first = ranks[0][f"quantizer{gumbel}"]
        for saved in ranks:
            assert saved[f"restarts{gumbel}"] == restarts
            for name, value in quantizer.state_dict().items():
                found = saved[f"quantizer{gumbel}"][name]
                torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-4, msg=name)
                assert torch.equal(found, first[name]), name


def test_rows_are_drawn_evenly_and_each_at_most_once() -> None:
    x_FD, counts = torch.arange(50.0)[:, None], torch.zeros(50)
    for seed in range(400):
        rows = agreed_rows(x_FD, places(x_FD), 10, seed)[:, 0]
        assert len(rows.unique()) == 10
        counts[rows.long()] += 1
    assert counts.min() > 40 and counts.max() < 130, counts  # 80 expected, standard deviation 8
    assert len(agreed_rows(x_FD, places(x_FD), 80, 0)) == 50
