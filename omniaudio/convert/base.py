"""Strict converter of checkpoints: a table of names, read in both directions.

A rule pairs patterns of their names with patterns of ours. Placeholders are the same on both sides:
``{i}``, ``{j}`` stand for whole numbers, ``{i*3+1}`` for 1, 4, 7, ... (i = 0, 1, 2, ...), ``{leaf}`` for one
part such as weight or bias, ``{rest}`` for anything. The first rule that fits a name is taken. Every tensor
on either side must be used, and found: what is not is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from omniaudio.errors import UserError

Bindings = tuple[tuple[str, str], ...]
"""What the placeholders of a pattern stand for in one name."""


class Pattern:
    """One name with placeholders."""

    PART = re.compile(r"\{(\w+)(?:\*(\d+))?(?:\+(\d+))?\}")

    def __init__(self, text: str) -> None:
        self.text = text
        pieces, last, seen = [], 0, set()
        self.numbers: dict[str, tuple[int, int]] = {}
        for part in self.PART.finditer(text):
            name = part[1]
            pieces.append(re.escape(text[last : part.start()]))
            last = part.end()
            if name in seen:
                pieces.append(f"(?P={name})")
                continue
            seen.add(name)
            if name not in ("leaf", "rest"):
                self.numbers[name] = (int(part[2] or 1), int(part[3] or 0))
            pieces.append(f"(?P<{name}>{ {'leaf': '[^.]+', 'rest': '.+'}.get(name, '[0-9]+') })")
        self.regex = re.compile("".join([*pieces, re.escape(text[last:])]))

    def match(self, name: str) -> Bindings | None:
        """The placeholders' values, or None if the pattern does not fit ``name``."""
        found = self.regex.fullmatch(name)
        if found is None:
            return None
        values = found.groupdict()
        for key, (factor, offset) in self.numbers.items():
            number, remainder = divmod(int(values[key]) - offset, factor)
            if remainder or number < 0:
                return None
            values[key] = str(number)
        return tuple(sorted(values.items()))

    def fill(self, bindings: Bindings) -> str:
        """The name for these values; inverse of ``match``."""
        values = dict(bindings)

        def value(part: re.Match[str]) -> str:
            text = values[part[1]]
            if part[1] not in self.numbers:
                return text
            factor, offset = self.numbers[part[1]]
            return str(int(text) * factor + offset)

        return self.PART.sub(value, self.text)


class Transform:
    """Tensors of one rule from their side to ours and back; this one changes nothing."""

    def to_ours(self, theirs: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        """``shapes`` are those that our module expects."""
        return theirs

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return ours


class Split(Transform):
    """They hold in one tensor, along the first axis, what we hold in several."""

    def to_ours(self, theirs: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        sizes = [shape[0] for shape in shapes]
        if sum(sizes) != len(theirs[0]):
            raise ValueError(f"{len(theirs[0])} rows there, {' + '.join(map(str, sizes))} here")
        return list(theirs[0].split(sizes))

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [torch.cat(ours)]


@dataclass(frozen=True)
class Reshape(Transform):
    """The same tensor in another form (a convolution of width 1 and a linear layer, say).

    Args:
        forward: theirs -> ours.
        backward: ours -> theirs, its inverse.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]

    def to_ours(self, theirs: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        return [self.forward(tensor) for tensor in theirs]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [self.backward(tensor) for tensor in ours]


@dataclass(frozen=True)
class OnlyTheirs(Transform):
    """Their second tensor has no meaning for us: left out on the way here, made anew on the way back.

    Args:
        make: the first tensor -> the second.
    """

    make: Callable[[Tensor], Tensor]

    def to_ours(self, theirs: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        return theirs[:1]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [ours[0], self.make(ours[0])]


@dataclass(frozen=True)
class OnlyOurs(Transform):
    """Our second tensor does not exist there: made on the way here, left out on the way back.

    Args:
        make: the first tensor -> the second.
    """

    make: Callable[[Tensor], Tensor]

    def to_ours(self, theirs: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        return [theirs[0], self.make(theirs[0])]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return ours[:1]


@dataclass(frozen=True)
class Rule:
    """One line of a table: a name or several there, a name or several here."""

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    transform: Transform = field(default_factory=Transform)

    def patterns(self, side: str) -> list[Pattern]:
        names = getattr(self, side)
        return [Pattern(name) for name in ([names] if isinstance(names, str) else names)]

    def renamed(self, theirs: Callable[[str], str], ours: Callable[[str], str]) -> Rule:
        def each(names: str | tuple[str, ...], change: Callable[[str], str]) -> str | tuple[str, ...]:
            return change(names) if isinstance(names, str) else tuple(change(name) for name in names)

        return Rule(each(self.theirs, theirs), each(self.ours, ours), self.transform)


@dataclass
class Problems:
    """What did not fit in one conversion."""

    where: str
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self) -> None:
        parts = [f"not used: {listed(self.unused)}" if self.unused else ""]
        parts += [f"not found: {listed(self.missing)}" if self.missing else ""]
        parts += sorted(self.wrong)
        if any(parts):
            raise UserError(f"{self.where}: {'; '.join(part for part in parts if part)}")


@dataclass(frozen=True)
class Converter:
    """A table of rules.

    Args:
        rules: tried in order, in both directions.
        ignored: patterns of their names that belong to parts which this project does not have.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()

    @cached_property
    def _sides(self) -> dict[str, list[list[Pattern]]]:
        return {side: [rule.patterns(side) for rule in self.rules] for side in ("theirs", "ours")}

    @cached_property
    def _ignored(self) -> list[Pattern]:
        return [Pattern(text) for text in self.ignored]

    def to_ours(
        self, theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str = "checkpoint"
    ) -> dict[str, Tensor]:
        """Their tensors under our names.

        Args:
            theirs: their state dict.
            expected: our state dict (tensors on the meta device will do): names and shapes to reach.
            where: for messages.

        Raises:
            UserError: naming every tensor that was not used, not found, or has another shape.
        """
        problems, out = Problems(where), dict[str, Tensor]()
        kept = {k: v for k, v in theirs.items() if not any(pattern.match(k) for pattern in self._ignored)}
        for rule, bindings, names in self._groups(kept, "theirs", problems):
            targets = [pattern.fill(bindings) for pattern in self._sides["ours"][rule]]
            known = [name for name in targets if name in expected]
            if len(known) < len(targets):
                problems.unused += names
                continue
            self._apply_to_ours(rule, [theirs[name] for name in names], targets, expected, out, problems)
        for name in expected.keys() - out.keys():
            problems.missing += [source for source in self.sources(name) if source not in theirs]
        problems.check()
        return {name: out[name] for name in expected}

    def to_theirs(self, ours: Mapping[str, Tensor], where: str = "model") -> dict[str, Tensor]:
        """Our tensors under their names; inverse of ``to_ours``.

        Raises:
            UserError: naming every tensor that no rule uses, or that a rule needs and does not find.
        """
        problems, out = Problems(where), dict[str, Tensor]()
        for rule, bindings, names in self._groups(ours, "ours", problems):
            targets = [pattern.fill(bindings) for pattern in self._sides["theirs"][rule]]
            tensors = self.rules[rule].transform.to_theirs([ours[name] for name in names])
            problems.wrong += [f"two tensors for {name}" for name in targets if name in out]
            out.update(zip(targets, tensors, strict=True))
        problems.check()
        return out

    def sources(self, ours: str) -> list[str]:
        """Their tensors that a tensor of ours comes from; itself if no rule says."""
        found = self._find(ours, "ours")
        return [ours] if found is None else [p.fill(found[1]) for p in self._sides["theirs"][found[0]]]

    def part(self, ours: str, theirs: str = "") -> Converter:
        """The rules of one module: names below ``ours`` here and ``theirs`` there, without these prefixes.

        All other tensors of theirs are ignored.
        """
        kept, others = [], list(self.ignored)
        for rule in self.rules:
            names = [pattern.text for pattern in rule.patterns("ours")]
            if all(name.startswith(f"{ours}.") for name in names):
                kept.append(
                    rule.renamed(
                        lambda name: name.removeprefix(f"{theirs}."),
                        lambda name: name.removeprefix(f"{ours}."),
                    )
                )
            else:
                others += [pattern.text.removeprefix(f"{theirs}.") for pattern in rule.patterns("theirs")]
        return Converter(kept, others)

    def _groups(
        self, state: Mapping[str, Tensor], side: str, problems: Problems
    ) -> list[tuple[int, Bindings, list[str]]]:
        """(rule, bindings, names in the rule's order) of all complete groups."""
        groups: dict[tuple[int, Bindings], set[str]] = {}
        for name in state:
            found = self._find(name, side)
            if found is None:
                problems.unused.append(name)
            else:
                groups.setdefault(found, set()).add(name)
        complete = []
        for (rule, bindings), present in groups.items():
            names = [pattern.fill(bindings) for pattern in self._sides[side][rule]]
            absent = [name for name in names if name not in present]
            problems.missing += absent
            if not absent:
                complete.append((rule, bindings, names))
        return complete

    def _find(self, name: str, side: str) -> tuple[int, Bindings] | None:
        for rule, patterns in enumerate(self._sides[side]):
            for pattern in patterns:
                if (bindings := pattern.match(name)) is not None:
                    return rule, bindings
        return None

    def _apply_to_ours(
        self,
        rule: int,
        tensors: list[Tensor],
        targets: list[str],
        expected: Mapping[str, Tensor],
        out: dict[str, Tensor],
        problems: Problems,
    ) -> None:
        try:
            made = self.rules[rule].transform.to_ours(tensors, [expected[name].shape for name in targets])
        except ValueError as error:
            problems.wrong.append(f"{self.sources(targets[0])[0]}: {error}")
            return
        for name, tensor in zip(targets, made, strict=True):
            if tensor.shape != expected[name].shape:
                shapes = f"{tuple(tensor.shape)} there, {tuple(expected[name].shape)} here ({name})"
                problems.wrong.append(f"{self.sources(name)[0]}: shape {shapes}")
            if name in out:
                problems.wrong.append(f"two tensors for {name}")
            out[name] = tensor


def listed(names: Iterable[str]) -> str:
    """Names in one line; more than four that differ in numbers only are written once, with the ranges."""
    groups: dict[str, list[list[str]]] = {}
    for name in sorted(set(names)):
        groups.setdefault(re.sub(r"\d+", "#", name), []).append(re.findall(r"\d+", name))
    lines = []
    for shape, numbers in groups.items():
        columns = zip(*numbers, strict=True)
        ranges = (sorted({int(value) for value in column}) for column in columns)
        texts = [str(r[0]) if len(r) == 1 else f"{{{r[0]}-{r[-1]}}}" for r in ranges]
        if len(numbers) <= 4:
            lines += [_put(shape, values) for values in numbers]
        else:
            lines.append(f"{_put(shape, texts)} ({len(numbers)} tensors)")
    return ", ".join(lines)


def _put(shape: str, values: Sequence[str]) -> str:
    rest = iter(values)
    return re.sub("#", lambda _: next(rest), shape)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint.

    Args:
        path: a .safetensors file, a .pt file of plain tensors, or a folder of .safetensors files.
    """
    from safetensors.torch import load_file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(
            f"{path}: no checkpoint there; give a .safetensors or .pt file, or a folder of .safetensors"
        )
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state.update(load_file(file))
            else:
                state.update(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # every library has its own for a damaged file
            raise UserError(
                f"{file}: cannot be read as a checkpoint ({str(error).splitlines()[0]})"
            ) from error
    return state
