"""What is a secret, by its name or its form, and configs without any: files, screens and scripts keep none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

BLANK = "***"
NAME = re.compile(
    r"(^|_)(token|password|passwd|pwd|passphrase|secret|credentials?|authorization|cookie|signature"
    r"|((api|secret|access|private|auth)_?key(_id)?))$"
)
"""Ends of a name that say so, in lower case with ``_`` between words: ``WANDB_API_KEY`` is ``wandb_api_key``."""
IN_TEXT = (
    re.compile(r"(?P<kept>\w://)[^/\s@]+(?=@)"),  # https://user:password@host
    re.compile(r"(?P<kept>\bBearer )\S+"),  # the value of a header
    re.compile(r"(?P<kept>\bBasic )[\w+/]{12,}=*"),  # not "Basic arithmetic"
)
SETTING = re.compile(r"(?P<name>[A-Za-z][\w-]*)=(?P<value>[^\s&;,]+)")
"""``?api_key=...`` of an address, ``WANDB_API_KEY=...`` among options."""
FROM_OUTSIDE = re.compile(r"\$\{[^,]+\}")
"""``${oc.env:NAME}`` says where a secret is, and is none."""


def is_secret(name: str) -> bool:
    """Whether what has this name is a secret: ``hub_token``, ``apiKey``, ``WANDB_API_KEY``; not ``max_tokens``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_")
    return NAME.search(words.lower()) is not None


def redacted(config: Any) -> Any:
    """The config with secrets blanked out: all below names that say so, all headers of requests, and parts of texts."""
    if isinstance(config, Mapping):
        return {
            name: _blanked(value)
            if is_secret(str(name)) or (name == "headers" and isinstance(value, Mapping))
            else redacted(value)
            for name, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return [redacted(value) for value in config]
    return _redacted_text(config) if isinstance(config, str) else config


def holds_secret(word: str) -> bool:
    """Whether an override of a command (``+engine.headers.Authorization=...``) or an option of one holds a secret."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:  # --export=NAME=VALUE
        return redacted(word) != word
    config: Any = parsed.value()
    for name in reversed(parsed.key_or_group.split(".")):
        config = {name: config}
    return bool(redacted(config) != config)


def _blanked(value: Any) -> Any:
    """Nothing of it but its form; what is not set, or only says whether, stays."""
    if isinstance(value, Mapping):
        return {name: _blanked(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_blanked(inner) for inner in value]
    public = value is None or isinstance(value, bool) or value == ""
    return value if public or FROM_OUTSIDE.fullmatch(str(value)) else BLANK


def _redacted_text(text: str) -> str:
    for pattern in IN_TEXT:
        text = pattern.sub(rf"\g<kept>{BLANK}", text)
    return SETTING.sub(_redacted_setting, text)


def _redacted_setting(found: re.Match[str]) -> str:
    value = BLANK if is_secret(found["name"]) else SETTING.sub(_redacted_setting, found["value"])
    return f"{found['name']}={value}"
