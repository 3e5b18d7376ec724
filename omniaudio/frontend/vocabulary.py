"""The text vocabulary of a system: learned from its texts, or the one that its pretrained backbone brings."""

from __future__ import annotations

import os
from pathlib import Path

from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer


def make_vocabulary(
    path: str | Path, texts_path: str | Path, vocab_size: int, pretrained: str | None = None
) -> dict[str, str]:
    """Write ``tokenizer.json`` unless it is there, and return its fingerprint.

    Args:
        path: of the tokenizer.json.
        texts_path: UTF-8, one document a line, to learn from.
        vocab_size: entries to learn.
        pretrained: hub name or local folder of a model whose tokenizer is taken instead.

    Returns:
        ``{"text_tokenizer": digest}``.

    Raises:
        UserError: there are no texts, or the pretrained tokenizer cannot be read.
    """
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # ranks may do it at once
        if pretrained:
            _copy_pretrained(pretrained, beside)
        else:
            try:
                with Path(texts_path).open(encoding="utf-8") as lines:
                    texts = (text for line in lines for text in line.splitlines() if text.strip())
                    TextTokenizer.train(texts, vocab_size, beside)
            except FileNotFoundError as error:
                raise UserError(f"{texts_path} is missing; run: omniaudio prepare") from error
        beside.replace(path)
    return {"text_tokenizer": TextTokenizer.from_file(path).digest}


def _copy_pretrained(name: str, path: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(name).backend_tokenizer.save(str(path))
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"backbone.pretrained: no fast tokenizer in {name!r} ({reason})") from error
