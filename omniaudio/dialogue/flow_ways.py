"""Ways to solve flow matching that are scored beside the model's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniaudio.acoustic.flow_matching import SOLVERS, WARPS
from omniaudio.errors import UserError

GUIDANCE = "guidance"


@dataclass(frozen=True, kw_only=True)
class FlowWays:
    """Each number of steps with each of what else is named.

    Args:
        flow_steps: numbers of steps.
        flow_solvers, flow_warps, flow_guidances: see FlowMatchingDecoder.decode; where none is named, the model's own.

    Raises:
        UserError: one that there is not, or something else without a number of steps.
    """

    flow_steps: Sequence[int] = ()
    flow_solvers: Sequence[str] = ()
    flow_warps: Sequence[str] = ()
    flow_guidances: Sequence[float] = ()

    def __post_init__(self) -> None:
        others = {name: value for name, value in vars(self).items() if name != "flow_steps"}
        for name, known in (("flow_solvers", SOLVERS), ("flow_warps", WARPS)):
            words = others[name]
            if not isinstance(words, list | tuple) or not set(map(str, words)) <= set(known):
                raise UserError(f"config {name}: {words} is not a list of {', '.join(known)}")
        numbers = self.flow_guidances
        if not isinstance(numbers, list | tuple) or not all(map(is_guidance, numbers)):
            raise UserError(f"config flow_guidances: {numbers} is not a list of numbers, each at least 0")
        for name, given in others.items():
            if given and not self.flow_steps:
                raise UserError(f"config {name}: {given} without steps; say how many: flow_steps=[1,2,4]")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> FlowWays:
        """Those that a config names."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    def variants(self) -> dict[str, dict[str, Any]]:
        """Name, such as ``flow_4`` or ``flow_4_heun_uniform_guidance0``, -> arguments of SpokenLanguageModel.mel."""
        others = (self.flow_guidances, self.flow_warps, self.flow_solvers)
        found: dict[str, dict[str, Any]] = {}
        for *named, num in itertools.product(*(given or [None] for given in others), self.flow_steps):
            guidance, warp, solver = named
            words = [
                "flow",
                *(str(word).replace("_", "-") for word in (num, solver, warp) if word is not None),
            ]
            words += [] if guidance is None else [f"{GUIDANCE}{guidance:g}"]
            asked = {
                "flow_steps": num,
                "flow_solver": solver,
                "flow_warp": warp,
                "flow_guidance": guidance,
            }
            found["_".join(words)] = {k: v for k, v in asked.items() if v is not None}
        return found


def way_name(variant: str) -> str:
    """One of ``variants`` in words."""
    _, num, *words = variant.split("_")
    told = f"{num} step{'s' if num != '1' else ''}"
    for word in words:
        if word in SOLVERS:
            told += f" of {word}"
        elif word.startswith(GUIDANCE):
            told += f", guidance {word.removeprefix(GUIDANCE)}"
        else:
            told += f", {word} times"
    return told


def is_guidance(number: Any) -> bool:
    """Whether this can be the strength of guidance."""
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < math.inf
