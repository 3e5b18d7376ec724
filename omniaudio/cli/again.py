"""The command line that gives a config again: printed beside every number."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

NAMES = ("system", "scale", "data", "tag")
"""Words that every command has; the experiment of a training names its system."""
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

    said = [*words, *(f"{name}={config[name]}" for name in NAMES[verb == "train" :])]
    raw = compose(verb, said, resolve=False)
    # First what refers to nothing else, then folders, then what is still another value than it refers to.
    for keys, own in ((config.keys(), True), (FOLDERS, False), (config.keys(), False)):
        usual = compose(verb, said)
        given = {key: config[key] for key in keys if key in config}
        said += changed(usual, given, raw if own else {})
    return " ".join(["omniaudio", verb, *map(shlex.quote, said)])


def changed(
    usual: Mapping[str, Any], config: Mapping[str, Any], raw: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """A word for each value that is not the usual one; with a plus where there is none.

    Args:
        raw: what refers to other keys is left out where it does so here.
    """
    for key, value in config.items():
        before, source = usual.get(key), raw.get(key)
        if isinstance(source, str) and "${" in source:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            below = source if isinstance(source, Mapping) else {}
            yield from changed(before, value, below, f"{prefix}{key}.")
        elif value != before:
            yield f"{'' if key in usual else '+'}{prefix}{key}={as_word(value)}"


def as_word(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_word, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {as_word(each)}" for key, each in value.items()) + "}"
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"[\w./:@%+ -]+", text, re.ASCII):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", text) + "'"
