import pytest
from torch import distributed

from omniaudio.ranks import num_ranks, rank_and_number


def test_a_process_alone_is_the_first_of_one():
    assert (rank_and_number(), num_ranks()) == ((0, 1), 1)


def test_a_launcher_has_the_word(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"is_initialized": True, "get_rank": 2, "get_world_size": 5}.items():
        monkeypatch.setattr(distributed, name, lambda value=value: value)
    assert (rank_and_number(), num_ranks()) == ((2, 5), 5)
