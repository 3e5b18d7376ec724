"""What the velocity estimators share: what a frame may see, and the time."""

import pytest
import torch

from omniaudio.acoustic.estimator import Chunks, TimeEmbedding, chunk_visible
from omniaudio.errors import UserError


def test_a_chunk_sees_itself_and_all_before() -> None:
    valid_BT = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    visible = chunk_visible(valid_BT, Chunks(2, 2))
    first = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert visible[0, 0].int().tolist() == first
    assert visible[1, 0].int().tolist() == [[*row[:3], 0, 0] for row in first]


def test_the_first_chunk_has_a_length_of_its_own_and_the_look_back_ends() -> None:
    visible = chunk_visible(torch.ones(1, 6, dtype=torch.bool), Chunks(1, 2), look_back=1)
    expected = [[1, 0, 0, 0, 0, 0], *2 * [[1, 1, 1, 0, 0, 0]], *2 * [[0, 0, 1, 1, 1, 0]], [0, 0, 0, 0, 1, 1]]
    assert visible[0, 0].int().tolist() == expected
    with pytest.raises(UserError, match="chunks of 0 and 2 frames; at least 1 each"):
        Chunks(0, 2)


def test_time_embedding_tells_times_apart() -> None:
    torch.manual_seed(0)
    embedding = TimeEmbedding(6, 4)
    a, b, c = embedding(torch.tensor([0.1, 0.1, 0.9]))
    torch.testing.assert_close(a, b)  # rows of one product may round apart
    assert not torch.allclose(a, c, atol=1e-3)
