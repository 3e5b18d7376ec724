"""Build objects from plain mappings: ``_target_`` names the class or function, other keys are its arguments.

The same form as Hydra's ``instantiate``, without Hydra, so that an export loads from its yaml alone, and
with an allowlist, so that a config from a stranger can only build parts of this project and of the named
libraries.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from omniaudio.errors import UserError

ALLOWED_TARGETS = ("omniaudio.", "torch.nn.", "torch.optim.", "transformers.get_")
"""What a config of one's own may name: choices of conf/."""
PART_TARGETS = (
    *(f"omniaudio.{name}." for name in ("frontend", "encoders", "quantizers", "sequence", "lm")),
    *(f"omniaudio.{name}." for name in ("acoustic", "vocoders", "dialogue")),
    "torch.nn.",
)
"""Whose classes a folder of weights may name, whoever made it: they hold numbers and do nothing else."""


def build(node: Any, path: str = "", /, *, _parts_only: bool = False, **extra: Any) -> Any:
    """Build ``node`` and everything below it.

    Args:
        node: mappings with ``_target_`` become objects (``_partial_: true`` makes a functools.partial
            instead), other mappings and lists are rebuilt item by item, the rest is returned as it is.
        path: the node's place in the config, for messages.
        extra: more arguments for the outermost ``_target_``.
        _parts_only: only classes of ``PART_TARGETS``; for configs that came with somebody's weights.

    Raises:
        UserError: a target that is not allowed, not found, or does not take its arguments.
    """
    if isinstance(node, Mapping):
        children = {
            key: build(value, f"{path}.{key}".lstrip("."), _parts_only=_parts_only)
            for key, value in node.items()
        }
        if "_target_" not in children:
            return children
        target = _locate(children.pop("_target_"), path, PART_TARGETS if _parts_only else ALLOWED_TARGETS)
        if _parts_only and not isinstance(target, type):
            raise UserError(f"config {path or 'root'}._target_: {target!r} is not allowed here: not a class")
        partial = children.pop("_partial_", False)
        arguments = {**children, **extra}
        if partial:
            return functools.partial(target, **arguments)
        try:
            return target(**arguments)
        except TypeError as error:
            if "argument" in str(error) and "__init__" in str(error) + f"{target.__name__}.__init__":
                raise UserError(f"config {path or 'root'}: {target.__name__}: {error}") from error
            raise
    if isinstance(node, (list, tuple)):
        return [build(value, f"{path}[{i}]", _parts_only=_parts_only) for i, value in enumerate(node)]
    return node


def factory(node: Any, path: str = "") -> Callable[[], Any]:
    """``node`` as a function without arguments that builds it, for parts that must be born late."""
    return functools.partial(build, node, path)


def _locate(name: str, path: str, allowed: tuple[str, ...]) -> Callable[..., Any]:
    if not isinstance(name, str) or not name.startswith(allowed) or "._" in name:
        raise UserError(
            f"config {path or 'root'}._target_: {name!r} is not allowed; targets begin with one of "
            f"{', '.join(allowed)}, and none is private"
        )
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(f"config {path or 'root'}._target_: {name!r} does not exist ({error})") from error
