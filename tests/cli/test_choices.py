"""The words that the README offers are words of the config."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from omniaudio.cli.main import compose

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
STAGES = {"The tokenizer": "tokenizer", "The language model": "pretrain_stage2"}


def offered() -> list[tuple[str, str]]:
    """Stage and words of every cell of the tables "by choice", and of the sentence on shares."""
    found = []
    for title, stage in STAGES.items():
        table = README.partition(f"## {title}, by choice")[2].partition("\n## ")[0]
        cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        assert len(cells) > 4
        found += [
            (stage, words)
            for cell in cells
            for words in re.findall("`([^`]+)`", cell)
            if "[...]" not in words
        ]
    shares = re.findall(r"`(mixture\.\w+\.corpora=[^`.]+)`", README)
    assert shares
    return found + [("pretrain_stage1", words) for words in shares]


@pytest.mark.parametrize(("stage", "words"), offered())
def test_the_words_of_the_readme_compose(stage: str, words: str) -> None:
    split = shlex.split(words.replace("--scale ", "scale="))
    verb = "train"
    if split[0] == "omniaudio":
        verb, *split = split[1:]
    choice = {"experiment": f"baichuan_audio/{stage}"} if verb == "train" else {"system": "baichuan_audio"}
    defaults = {**choice, "scale": "tiny"}
    named = {word.partition("=")[0] for word in split}
    assert compose(verb, [*(f"{k}={v}" for k, v in defaults.items() if k not in named), *split])


def test_shares_of_corpora_are_given_without_a_plus() -> None:
    for name in ("pretrain", "sft", "clips"):
        config = compose(
            "train",
            [
                "experiment=baichuan_audio/vocoder",
                "scale=tiny",
                f"mixture.{name}.corpora={{asterisk: 1, fotaq: 3}}",
            ],
        )
        assert config["mixture"][name]["corpora"] == {"asterisk": 1, "fotaq": 3}
