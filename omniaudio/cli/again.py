"""The command line that gives a config again: printed beside every number."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

NAMES = ("system", "scale", "data", "tag")
"""Words that every command has."""
FOLDERS = ("exp_dir", "data_dir")
"""Others follow from these, so they come first."""


def command_of(verb: str, config: Mapping[str, Any], *words: str) -> str:
    """``omniaudio verb`` with ``words``, the names, and each word in which ``config`` is not what they say.

    Args:
        verb: composed from conf/<verb>.yaml.
        config: resolved, of that verb.
        words: put first, and composed too.
    """
    from omniaudio.cli.main import compose

    said = [*words, *(f"{name}={config[name]}" for name in NAMES)]
    for keys in (FOLDERS, config.keys()):
        usual = compose(verb, said)
        said += changed({key: usual[key] for key in keys}, {key: config[key] for key in keys})
    return " ".join(["omniaudio", verb, *map(shlex.quote, said)])


def changed(usual: Mapping[str, Any], config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A word for each value that is not the usual one."""
    for key, value in config.items():
        before = usual.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from changed(before, value, f"{prefix}{key}.")
        elif value != before:
            yield f"{prefix}{key}={as_word(value)}"


def as_word(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_word, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {as_word(each)}" for key, each in value.items()) + "}"
    return str(value)
