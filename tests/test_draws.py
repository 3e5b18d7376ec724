"""Draws by place: even, independent of each other, and the same however items are dealt."""

from __future__ import annotations

import torch
from torch import Tensor

from omniaudio import ranks
from omniaudio.draws import Draws, frame_places, item_places, mixed
from omniaudio.encoders.augment import mask_time
from omniaudio.quantizers.base import choose_passing, kept_books, passing_frames

CPU = torch.device("cpu")


class Ranks:
    """Stands for torch.distributed as rank ``rank`` of ``num``."""

    def __init__(self, rank: int, num: int) -> None:
        self.rank, self.num = rank, num

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return self.num


def test_numbers_are_even_and_of_no_pattern() -> None:
    place = torch.arange(200_000)
    first, second = (Draws(seed).uniform("a", place) for seed in (3, 4))
    for numbers in (first, second, Draws(3).uniform("b", place)):
        assert numbers.min() >= 0 and numbers.max() < 1
        share = torch.histc(numbers, 20, 0, 1) / len(place)
        assert (share - 0.05).abs().max() < 0.003
        assert abs(float(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1])) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([first, Draws(3).uniform("b", place)]))[0, 1])) < 0.01
    assert torch.equal(first, Draws(3).uniform("a", place))
    assert mixed(place, 0).min() >= 0


def test_fresh_draws_follow_torchs_generator() -> None:
    torch.manual_seed(0)
    seeds = [Draws.fresh().seed for _ in range(3)]
    torch.manual_seed(0)
    assert [Draws.fresh().seed for _ in range(3)] == seeds and len(set(seeds)) == 3


def by_rank(monkeypatch, num: int) -> list[list[Tensor]]:
    """What every rank draws for its items of a batch of 12, whose rows are as long as the rank's longest."""
    found = []
    for rank in range(num):
        monkeypatch.setattr(ranks, "distributed", Ranks(rank, num))
        length_B = torch.arange(3, 15)[rank::num]
        valid_BS = torch.arange(int(length_B.max())) < length_B[:, None]
        step, rows = Draws(7), len(length_B)
        mel_BMT = torch.ones(rows, 1, int(length_B.max()))
        keep = kept_books(torch.ones(rows, 1, dtype=torch.bool), 4, 0.5, step)
        masked_BT = mask_time(mel_BMT, length_B, 0.5, 2, step)[:, 0, :3]
        frames_BS = passing_frames(valid_BS, 0.5, "token", step)[:, :3]
        found.append(
            [choose_passing(rows, 0.3, CPU, step), keep, masked_BT, frames_BS, item_places(rows, CPU)]
        )
    return found


def test_ranks_draw_what_one_process_draws_for_their_items(monkeypatch) -> None:
    (alone,) = by_rank(monkeypatch, 1)
    assert all(0 < float(numbers.float().mean()) < 1 for numbers in alone[:4])
    for num in (2, 3):
        for rank, mine in enumerate(by_rank(monkeypatch, num)):
            assert all(torch.equal(ours, all_[rank::num]) for ours, all_ in zip(mine, alone, strict=True))


def test_the_share_of_the_global_batch_passes() -> None:
    for share in (0.0, 0.1, 0.37, 1.0):
        counts = [int(choose_passing(20, share, CPU, Draws(step)).sum()) for step in range(500)]
        assert max(counts) - min(counts) <= 1
        assert abs(sum(counts) / 500 - 20 * (1 - share)) < 0.1
    each_B = torch.stack([choose_passing(7, 0.4, CPU, Draws(step)) for step in range(2000)]).float().mean(0)
    assert (each_B - 0.6).abs().max() < 0.05, "every item has the same chance"


def test_frames_of_two_items_have_places_of_their_own() -> None:
    assert frame_places(3, 1000, CPU).unique().numel() == 3000
