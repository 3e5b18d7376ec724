"""The recordings of the audio LLM in tests/golden, one test a case."""

import pytest
import torch

from omniaudio.convert import parity_lm
from omniaudio.convert.parity import Case, Recording, failure
from tests.convert.test_parity import GOLDEN

CASES = list(parity_lm.lm_cases(Recording(GOLDEN, "lm")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recording(case: Case) -> None:
    assert failure(case)[1] == ""


def test_nothing_is_left_out() -> None:
    assert [case.name for case in CASES][1:] == [
        "lm text and audio",
        "lm audio head",
        "lm speech, greedy_rp1.0",
        "lm speech, greedy_rp1.3",
    ]


def test_the_two_penalties_are_told_apart() -> None:
    """The code that a penalty of 1.3 forbids is the one that greedy speech without a penalty says again."""
    of = Recording(GOLDEN, "lm")
    plain, penalised = (of[f"gen/greedy_rp{penalty}/audios_sequences"][0] for penalty in ("1.0", "1.3"))
    assert plain[:2].equal(penalised[:2]) and plain[2, 0] == plain[1, 0] != penalised[2, 0]


def test_a_matrix_kept_by_its_inputs_is_whole_for_them() -> None:
    of = Recording(GOLDEN, "lm")
    name = "audio_head.transformer_layers.0.linear1.weight"
    basis = of[f"low_rank/{name}/0/basis"]
    weight = parity_lm.whole_weights(of)[name][:, : len(basis)]
    torch.testing.assert_close(weight @ basis, of[f"low_rank/{name}/0/product"], atol=1e-5, rtol=1e-4)
