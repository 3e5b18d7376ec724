"""The recordings in tests/golden, one test a case."""

import pytest

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
