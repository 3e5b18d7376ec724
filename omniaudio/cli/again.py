"""The command line that gives a config again: printed beside every number."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omniaudio.errors import UserError

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


def trained_by(config: Mapping[str, Any], name: str) -> str:
    """The command of a stage's training, with every word of its own config.yaml; of an older one, its names.

    Args:
        config: of another verb of the same run.
        name: of the stage.
    """
    import yaml

    words, path = [f"experiment={config['system']}/{name}"], Path(config["exp_dir"]) / name / "config.yaml"
    if path.is_file():
        try:
            return command_of("train", yaml.safe_load(path.read_text("utf-8")), *words)
        except (UserError, KeyError):
            pass
    return " ".join(["omniaudio train", *words, *(f"{key}={config[key]}" for key in NAMES[1:])])


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
