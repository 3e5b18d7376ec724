"""One book: averages by hand, shrink, restarts, sampling, start, and agreement of two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from omniaudio.quantizers.codebook import Codebook, CodebookTraining


def make_book(embed_VD: Tensor, **options: float) -> Codebook:
    book = Codebook(embed_VD.shape[1], len(embed_VD), CodebookTraining(**options))  # type: ignore[arg-type]
    book.embed.copy_(embed_VD)
    book.embed_avg.copy_(embed_VD)
    book.cluster_size.fill_(1.0)
    return book


def test_moving_averages_by_hand() -> None:
    book = make_book(torch.tensor([[0.0, 0.0], [10.0, 10.0]]), decay=0.9, shrink=0.5)
    x_FD = torch.tensor([[1.0, 0.0], [3.0, 2.0], [10.0, 12.0]])
    code_F = book.choose(x_FD)
    assert code_F.tolist() == [0, 0, 1]
    book.learn(x_FD, code_F)
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
    restarts = [float(book.learn(x_FD, book.choose(x_FD))) for _ in range(3)]
    assert restarts == [0, 0, 2]
    assert all((value == x_FD).any() for value in book.embed[1:].flatten()[:, None, None])
    assert book.stats(book.choose(x_FD))["usage"] == 1


def test_gumbel_sampling_spreads_with_temperature_and_only_in_training() -> None:
    torch.manual_seed(0)
    embed_VD = torch.tensor([[0.0], [1.0]])
    x_FD = torch.full((2000, 1), 0.4)  # squared distances 0.16 and 0.36
    book = make_book(embed_VD, gumbel_temperature=1.0)
    share = book.choose(x_FD).float().mean()
    expected = 1 / (1 + torch.exp(torch.tensor((0.36 - 0.16) / 0.16)))
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)
    assert book.eval().choose(x_FD).sum() == 0
    assert make_book(embed_VD, gumbel_temperature=0.0).choose(x_FD).sum() == 0


@pytest.mark.parametrize("num_samples", [3, 10, 200])
def test_start_takes_codes_from_the_first_batch_once(num_samples: int) -> None:
    torch.manual_seed(0)
    book = Codebook(4, 10, CodebookTraining())
    x_FD = torch.randn(num_samples, 4) + 50
    book.start(x_FD)
    assert (book.embed.mean(-1) - 50).abs().max() < 5
    assert len(book.embed.unique(dim=0)) == 10 or num_samples == 3
    assert (book.cluster_size > 0).all()
    before = book.embed.clone()
    book.start(x_FD - 100)
    assert torch.equal(book.embed, before)


def test_kmeans_finds_two_clusters() -> None:
    torch.manual_seed(0)
    book = Codebook(1, 2, CodebookTraining(kmeans_steps=10))
    x_FD = torch.cat([torch.randn(30, 1) * 0.1, torch.randn(50, 1) * 0.1 + 8])
    book.start(x_FD)
    torch.testing.assert_close(book.embed.sort(0).values, torch.tensor([[0.0], [8.0]]), atol=0.1, rtol=0)


def test_books_follow_the_device_but_not_the_type() -> None:
    book = Codebook(4, 10, CodebookTraining()).to(torch.bfloat16)
    assert book.embed.dtype == book.cluster_size.dtype == torch.float32
    assert book.unused_steps.dtype == torch.int64
    assert book.to("meta").embed.is_meta


def test_code_minus_one_gives_zeros() -> None:
    book = make_book(torch.tensor([[5.0], [6.0]]))
    assert book.lookup(torch.tensor([[-1, 1]])).tolist() == [[[0.0], [6.0]]]


def _train_on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    book = make_book(torch.tensor([[0.0], [4.0]]))
    mine_FD = X_FD[rank::2]
    book.learn(mine_FD, book.choose(mine_FD))

    torch.manual_seed(rank)
    started = Codebook(2, 6, CodebookTraining(restart_after=2))
    data = torch.arange(24.0).reshape(12, 2)
    for _ in range(4):
        mine_FD = data[:8] if rank == 0 else data[8:]  # ranks of unequal size
        started.start(mine_FD)
        started.learn(mine_FD, started.choose(mine_FD).clamp(max=2))  # codes 3 to 5 are never used
    torch.save({"learned": book.state_dict(), "started": started.state_dict()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


X_FD = torch.tensor([[0.5], [1.0], [3.0], [5.0]])


@pytest.mark.slow
def test_two_processes_keep_one_book(tmp_path: Path) -> None:
    multiprocessing.spawn(_train_on_a_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in first["started"].items():
        assert torch.equal(value, second["started"][name]), name
    assert first["started"]["unused_steps"].max() < 2, "never-used codes were replaced on both"
    alone = make_book(torch.tensor([[0.0], [4.0]]))  # sums and counts of both are those of the joined batch
    alone.learn(X_FD, alone.choose(X_FD))
    torch.testing.assert_close(dict(alone.state_dict()), dict(first["learned"]))
