"""The recordings in tests/golden, one test a case."""

import pytest
import torch

from omniaudio.convert import parity_acoustic
from omniaudio.convert.parity import Case, Recording, failure
from tests.convert.test_parity import GOLDEN

CASES = [
    *parity_acoustic.flow_cases(Recording(GOLDEN, "flow"), parity_acoustic.unet_heads(GOLDEN)),
    *parity_acoustic.vocoder_cases(Recording(GOLDEN, "vocoder")),
    *parity_acoustic.disc_cases(Recording(GOLDEN, "disc")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recording(case: Case) -> None:
    assert failure(case)[1] == ""


def test_heads_must_be_known(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="heads"):
        parity_acoustic.unet_heads(tmp_path)


def test_nothing_is_left_out() -> None:
    names = [case.name for case in CASES]
    assert names[-4:] == [
        "vocoder mel to waveform",
        "disc losses of recorded scores",
        "names of discriminator, both ways",
        "disc waveform to scores",
    ]


def test_what_a_band_gives() -> None:
    """Columns of scores that see no other band; of four maps a band, and the scores if all are there."""
    features = [torch.zeros(1, 1, 1, width) for band in (2, 3, 4, 1, 2) for width in (9, 9, 9, band)]
    features.append(torch.zeros(1, 1, 1, 12))
    columns = {
        band: parity_acoustic.known_columns(features, {band}).nonzero()[:, 0].tolist() for band in range(5)
    }
    assert columns == {0: [0], 1: [3], 2: [6, 7], 3: [], 4: [11]}
    assert parity_acoustic.known_columns(features, set(range(5))).all()
    assert parity_acoustic.known_maps({1}) == [4, 5, 6, 7]
    assert parity_acoustic.known_maps(set(range(5))) == list(range(21))
