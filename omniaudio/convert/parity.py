"""Our modules against recordings of a reference implementation: what a case is, and how it is judged.

The cases themselves: parity_tokenizer.py, parity_acoustic.py, parity_lm.py. ``tools/parity.py`` runs them on a folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from omniaudio.convert.baichuan_audio import load_released, to_released
from omniaudio.convert.base import Converter

NEVER_READ = re.compile(
    r"audio_head\.transformer_layers\.\d+\.linear[12]\.bias|.*prenet\.positional_embedding"
)
"""Tensors that released models hold and do not use."""

POSITIONS = 2e-3
"""Positions are written from their formula."""


@dataclass(frozen=True)
class Check:
    """One comparison: what was computed and what was recorded may differ by ``tolerance`` at most."""

    what: str
    ours: Any
    theirs: Any
    tolerance: float = 0.0

    @property
    def deviation(self) -> float:
        ours, theirs = torch.as_tensor(self.ours), torch.as_tensor(self.theirs)
        if ours.shape != theirs.shape:
            return math.inf
        if not ours.numel():
            return 0.0
        worst = (ours.double() - theirs.double()).abs().max()
        return math.inf if worst.isnan() else float(worst)


Checks = Iterator[Check]


@dataclass(frozen=True)
class Case:
    """A named group of checks."""

    name: str
    run: Callable[[], Checks]


class Recording:
    """One pair of files; tensors by path below ``[...]``, plain values below ``value``.

    A tensor may be kept in 16 bits: integers ``NAME/int16``, each times the number ``NAME/step``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.tensors = load_file(folder / f"{name}.safetensors")
        for key in [key for key in self.tensors if key.endswith("/int16")]:
            whole = key.removesuffix("/int16")
            self.tensors[whole] = self.tensors.pop(key).float() * self.tensors.pop(f"{whole}/step")
        path = folder / f"{name}.json"
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def names_below(self, prefix: str) -> list[str]:
        """The next part of every path below ``prefix``."""
        return sorted({key.partition("/")[0] for key in self.below(prefix)})

    def sizes(self, prefix: str) -> Callable[[str], Any]:
        return lambda name: self.values[f"{prefix}{name}"]


def there_and_back(
    modules: Mapping[str, nn.Module], theirs: Mapping[str, Tensor], converter: Converter
) -> Case:
    """Load released tensors into ours, now; the case writes them again: nothing may have changed.

    A recording may leave out tensors that are never read.
    """
    unread = {
        key: value for key, value in to_released(modules, converter).items() if NEVER_READ.fullmatch(key)
    }
    load_released(modules, {**unread, **theirs}, converter)
    return Case(f"names of {' and '.join(modules)}, both ways", lambda: _written(modules, theirs, converter))


def _written(modules: Mapping[str, nn.Module], theirs: Mapping[str, Tensor], converter: Converter) -> Checks:
    back = to_released(modules, converter)
    differ = [key for key in back.keys() ^ theirs.keys() if not NEVER_READ.fullmatch(key)]
    assert not differ, f"names differ: {sorted(differ)[:4]}"
    for key, tensor in theirs.items():
        if key.endswith("positional_embedding"):
            yield Check(key, back[key], tensor, POSITIONS)
        elif not NEVER_READ.fullmatch(key):
            yield Check(key, back[key], tensor)


@torch.no_grad()
def failure(case: Case) -> tuple[float, str]:
    """The largest deviation of a case, and what is wrong with it ('' if nothing)."""
    worst, wrong = 0.0, []
    try:
        for check in case.run():
            worst = max(worst, check.deviation)
            if check.deviation > check.tolerance:
                wrong.append(f"{check.what} differs by {check.deviation:.3g}, allowed {check.tolerance:g}")
    except Exception as error:  # one broken case must not hide the others
        return math.inf, f"{type(error).__name__}: {error}"
    return worst, "; ".join(wrong[:3])
