"""What layers remember."""

import torch
from torch import nn

from omniaudio.past import Past, band


def test_a_band_ends_at_the_query_and_begins_look_back_before() -> None:
    assert band(2, 4, 1, torch.device("cpu")).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert band(2, 4, None, torch.device("cpu")).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_layers_have_memories_of_their_own_and_keep_what_was_asked() -> None:
    past, one, other = Past(look_back=3), nn.Identity(), nn.Identity()
    steps = torch.arange(1.0, 7.0)[None, None]
    assert past.before(one, steps[..., :2], 2).flatten().tolist() == [0, 0, 1, 2]
    assert past.before(other, steps[..., 4:], 2).flatten().tolist() == [0, 0, 5, 6]
    assert past.before(one, steps[..., 2:3], 2).flatten().tolist() == [1, 2, 3]
    assert past.before(one, steps[..., 3:], 2).flatten().tolist() == [2, 3, 4, 5, 6]

    past, keys = Past(look_back=3), torch.arange(6.0)[None, :, None]
    seen = [past.keys_values(one, keys[:, i : i + 2], -keys[:, i : i + 2]) for i in (0, 2, 4)]
    assert [key.flatten().tolist() for key, _ in seen] == [[0, 1], [0, 1, 2, 3], [1, 2, 3, 4, 5]]
    assert all(torch.equal(key, -value) for key, value in seen)
    assert past.num_values == 2 * 3
