"""The words that the README offers are words of the config."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from omniaudio.cli.main import compose

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
STAGES = {"The tokenizer": "tokenizer", "The language model": "pretrain_stage2", "Speech out": "flow"}
OF_PREFERENCES = ("task.beta", "task.average", "dpo/")


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
    shares = re.findall(r"`('?mixture\.\w+\.corpora=[^`.]+)`", README)
    assert shares and not re.findall(r"`[^`']*=\{[^`]*`", README), "a shell takes braces apart: quote them"
    return found + [("pretrain_stage1", words) for words in shares]


@pytest.mark.parametrize(("stage", "words"), offered())
def test_the_words_of_the_readme_compose(stage: str, words: str) -> None:
    split = shlex.split(words.replace("--scale ", "scale="))
    if any(name in words for name in OF_PREFERENCES):
        stage = "dpo"
    if split[0] != "omniaudio":
        verb, given = "train", {"experiment": f"baichuan_audio/{stage}", "scale": "tiny"}
    else:  # a whole command, as it stands; or one with dots for what is said elsewhere
        verb, *split = [word.replace("NAME", "baichuan_audio") for word in split[1:]]
        given = {"system": "baichuan_audio", "scale": "tiny"} if "..." in split else {}
    named = {word.partition("=")[0] for word in split}
    words_of_all = [*(f"{k}={v}" for k, v in given.items() if k not in named), *split]
    assert compose(verb, [word for word in words_of_all if word != "..."])


@pytest.mark.parametrize("scale", ["full", "mini"])
@pytest.mark.parametrize(
    "word", ["mixture.pretrain.weights.text=0", "mixture.pretrain.loss_on_intlv_audio=true"]
)
def test_an_ablation_of_the_mixture_leaves_what_is_held_out_as_it_is(scale: str, word: str) -> None:
    assert f"`{word}`" in README
    words = ["experiment=baichuan_audio/pretrain_stage2", f"scale={scale}"]
    plain, ablated = compose("train", words), compose("train", [*words, word])
    assert plain["val_steps"]["mixture"] == plain["train_steps"]["mixture"]
    assert ablated["train_steps"] != plain["train_steps"] and ablated["val_steps"] == plain["val_steps"]


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
