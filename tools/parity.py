"""Our modules against recordings of the reference implementation (arXiv:2502.17239), of any width and seed.

    python tools/parity.py tests/golden

A folder holds pairs ``NAME.safetensors`` and ``NAME.json``: weights under the released names (``state_dict/...``),
inputs, outputs, and the plain values of the configuration; tests/golden/README.md says what each of them pins.
Every case that is found is run; what a folder does not hold is not asked. One line a case, with the largest
deviation; the last line is ``N passed, M failed``, and the exit code is 1 if any failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from omniaudio.convert.parity import Case, Checks, Recording, failure
from omniaudio.convert.parity_acoustic import disc_cases, flow_cases, unet_heads, vocoder_cases
from omniaudio.convert.parity_lm import lm_cases
from omniaudio.convert.parity_tokenizer import frontend_cases, mel24k_cases, rvq_cases, tokenizer_cases


def all_cases(folder: Path) -> Iterator[Case]:
    """Every case of a folder, in the order of the data flow; each first builds what it needs."""
    makers: dict[str, Callable[[Recording], Iterator[Case]]] = {
        "frontend": frontend_cases,
        "mel24k": mel24k_cases,
        "rvq": rvq_cases,
        "tokenizer": tokenizer_cases,
        "flow": lambda of: flow_cases(of, unet_heads(folder)),
        "vocoder": vocoder_cases,
        "disc": disc_cases,
        "lm": lm_cases,
    }
    for name, make in makers.items():
        if (folder / f"{name}.safetensors").exists():
            try:
                cases = list(make(Recording(folder, name)))
            except Exception as error:  # a recording that cannot be read must not hide the others
                cases = [unreadable(name, error)]
            yield from cases


def unreadable(name: str, error: Exception) -> Case:
    """A case that fails with ``error``."""

    def run() -> Checks:
        raise error

    return Case(f"{name} cannot be built", run)


def main(folder: Path) -> int:
    """Run all cases of a folder; returns the exit code."""
    passed = failed = 0
    for case in all_cases(folder):
        worst, wrong = failure(case)
        print(
            f"{'FAIL' if wrong else 'ok  '} {case.name}   max deviation {worst:.2g}{f'   {wrong}' if wrong else ''}"
        )
        passed, failed = passed + (not wrong), failed + bool(wrong)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python tools/parity.py FOLDER   (a folder of recordings, such as tests/golden)")
    sys.exit(main(Path(sys.argv[1])))
