import os

import pytest

from omniaudio.corpus.workers import Workers
from omniaudio.errors import UserError


def test_results_come_in_order():
    with Workers(0) as workers:
        assert list(workers.map(abs, [-3, 1, -2], "x")) == [3, 1, 2]
    with Workers(1) as workers:
        assert list(workers.map(abs, range(-300, 0), "x")) == list(range(300, 0, -1))
        assert list(workers.map(abs, [], "x")) == []


def test_a_killed_worker_is_one_line():
    with pytest.raises(UserError, match="Adding: a worker process was killed"), Workers(1) as workers:
        list(workers.map(os._exit, [9], "Adding"))


def test_an_error_in_a_worker_is_that_error():
    with pytest.raises(UserError, match="of abc"), Workers(1) as workers:
        list(workers.map(UserErrorOf, ["abc"], "x"))


class UserErrorOf:
    def __init__(self, name):
        raise UserError(f"of {name}")
