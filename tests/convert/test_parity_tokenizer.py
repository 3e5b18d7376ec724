"""The recordings in tests/golden, one test a case."""

import pytest
import torch

from omniaudio.convert import parity_tokenizer
from omniaudio.convert.parity import Case, Recording, failure
from omniaudio.quantizers.rvq import ResidualVQ
from omniaudio.types import valid_steps
from tests.convert.test_parity import GOLDEN

CASES = [
    case
    for name in ("frontend", "mel24k", "rvq", "tokenizer")
    for case in getattr(parity_tokenizer, f"{name}_cases")(Recording(GOLDEN, name))
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recording(case: Case) -> None:
    assert failure(case)[1] == ""


def test_nothing_is_left_out() -> None:
    assert len(CASES) == 7 + 4 + 2 + 7


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "codes_fp32"), (torch.bfloat16, "codes_bf16")])
def test_codes_stay_under_autocast_and_in_a_model_of_another_type(dtype: torch.dtype, name: str) -> None:
    of = Recording(GOLDEN, "rvq")
    entries = [of[f"embeds/{i}"] for i in range(8)]
    quantizer = ResidualVQ(entries[0].shape[1], [len(entry) for entry in entries]).eval()
    for book, entry in zip(quantizer.books, entries, strict=True):
        book.embed.copy_(entry)
    x_BSD, valid_BS = of["x"].to(dtype), valid_steps(of["lens"], of["x"].shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # training runs under autocast; distances stay float32
        assert torch.equal(quantizer(x_BSD, valid_BS).codes_BSK, of[name])
    quantizer.bfloat16()
    assert torch.equal(quantizer.encode(x_BSD, valid_BS), of[name]), "books follow no change of type"
