"""What a text model knows of texts: perplexity, and questions with several answers, before and after audio training.

A question is scored by the likelihood of its answers, as is usual since arXiv:2005.14165 (section 2.4): the answer
whose pieces are likeliest on average wins. Questions come from held-out texts of the corpus (which words follow?), so
that nothing is fetched, or from a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from omniaudio.dialogue.evaluation import Track
from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.metrics.records import Row
from omniaudio.sequence.spans import Document, DocumentLayouts, pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import device_of

SECTION = "Text before and after audio training"
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Question:
    """``choices[answer]`` is what follows ``context``, with ``join`` between them."""

    context: str
    choices: tuple[str, ...]
    answer: int
    join: str = " "


@dataclass(frozen=True)
class Accuracy:
    """How many questions were answered right, and how many a guess gets, as a share."""

    right: int
    total: int
    chance: float

    @property
    def share(self) -> float:
        return self.right / self.total

    @property
    def error(self) -> float:
        """Standard error of the share."""
        return float(np.sqrt(self.share * (1 - self.share) / self.total))


def text_losses(
    backbone: CausalBackbone,
    space: TokenSpace,
    ids: Sequence[Sequence[int]],
    track: Track,
    max_positions: int,
) -> Iterator[Tensor]:
    """Loss of every piece of every text and of its end, by text: (pieces + 1,) on the CPU, in order.

    Where no ``bos`` begins the texts, the first piece of each has none: (pieces,).

    Args:
        backbone: the text model.
        space: its ids.
        ids: pieces of every text, at least one and at most ``room_for_text``.
        max_positions: packed into one forward pass.
    """
    layouts = DocumentLayouts(space)
    rows: list[list[Document]] = []
    for i, text in enumerate(ids):
        document = layouts.text(str(i), text)
        if not rows or sum(map(len, rows[-1])) + len(document) > max_positions:
            rows.append([])
        rows[-1].append(document)
    for row in track(rows, "texts"):
        batch = pack(row).to(device_of(backbone))
        with torch.inference_mode():
            hidden_LD = backbone(backbone.embed_text(batch.ids_L), batch.doc_len_G)
            loss_L = backbone.text_loss(hidden_LD, batch.text_label_L).cpu()
        for loss in loss_L.split(batch.doc_len_G.tolist()):
            yield loss[:-1]  # behind the end there is nothing


def room_for_text(space: TokenSpace, max_positions: int) -> int:
    """Pieces of a text that fit beside its end and its beginning."""
    return max_positions - 1 - len(space.beginning)


def text_perplexity(
    backbone: CausalBackbone,
    space: TokenSpace,
    ids: Sequence[Sequence[int]],
    track: Track,
    max_positions: int = 2048,
) -> float:
    """Perplexity of texts by piece; documents are read each for itself; what is scored says ``text_losses``.

    Args:
        backbone, space, ids, max_positions: see ``text_losses``; longer texts are cut, empty ones left out.
    """
    cut = [text[: room_for_text(space, max_positions)] for text in ids if len(text) > 0]
    total, count = 0.0, 0
    for loss in text_losses(backbone, space, cut, track, max_positions):
        total, count = total + float(loss.sum(dtype=torch.float64)), count + len(loss)
    if not count:
        raise UserError("text perplexity: the held-out texts hold no pieces to score")
    return float(np.exp(total / count))


def answer_questions(
    backbone: CausalBackbone,
    space: TokenSpace,
    encode: Encode,
    questions: Sequence[Question],
    track: Track,
    max_positions: int = 2048,
) -> Accuracy:
    """Questions to which the likeliest choice, by the mean over its pieces, is the answer.

    Args:
        encode: text to pieces.
        max_positions: see ``text_losses``; of a longer context the end is read.
    """
    texts, scored, room = [], [], room_for_text(space, max_positions)
    unscored = 0 if space.beginning else 1  # without bos, the first piece of a text has no likelihood
    for question in questions:
        before = len(encode(question.context))
        for choice in question.choices:
            ids = encode(question.context + question.join + choice)
            num_scored = len(ids) - max(before, unscored)
            if not 0 < num_scored <= room - unscored:
                raise UserError(
                    f"the choice {choice[:60]!r} has {num_scored} pieces to score; must be 1 to {room - unscored}"
                )
            texts.append(ids[-room:])
            scored.append(num_scored)
    losses = text_losses(backbone, space, texts, track, max_positions)
    # The last of a text's losses is that of its end, which belongs to no choice.
    means = iter([float(loss[-num - 1 : -1].mean()) for loss, num in zip(losses, scored, strict=True)])
    right = 0
    for question in questions:
        found = [next(means) for _ in question.choices]
        right += found.index(min(found)) == question.answer
    chance = float(np.mean([1 / len(question.choices) for question in questions]))
    return Accuracy(right, len(questions), chance)


def next_words(
    texts: Sequence[str], num_questions: int, num_choices: int, context_words: int, choice_words: int
) -> list[Question]:
    """Which words follow? The others were as far on in other texts. The same questions every time.

    Args:
        texts: held out, one document each; those of fewer words than a question give none.
        num_questions: at most; evenly spaced.
        num_choices: the right one and words of that many other texts.
        context_words, choice_words: of a question.
    """
    if num_choices < 2 or min(num_questions, context_words, choice_words) < 1:
        raise UserError(
            f"choices: num_choices {num_choices} must be at least 2, num_questions {num_questions}, context_words "
            f"{context_words} and choice_words {choice_words} at least 1"
        )
    size, spans = context_words + choice_words, []
    for number, words in enumerate(map(str.split, texts)):
        for start in range(0, len(words) - size + 1, size):
            cut = start + context_words
            spans.append((number, " ".join(words[start:cut]), " ".join(words[cut : start + size])))
    if len({number for number, *_ in spans}) < num_choices:
        return []
    rng, questions = np.random.default_rng(0), []
    for number, context, right in spans[:: max(1, -(-len(spans) // num_questions))]:
        others: dict[int, str] = {}  # each of another text
        for place in rng.permutation(len(spans)):
            if spans[place][0] != number and len(others) < num_choices - 1:
                others.setdefault(spans[place][0], spans[place][2])
        answer = int(rng.integers(num_choices))
        choices = [*others.values()]
        choices.insert(answer, right)
        questions.append(Question(context, tuple(choices), answer))
    return questions


def read_questions(path: str | Path) -> list[Question]:
    """Questions of a file: a line ``{"context": "...", "choices": ["...", "..."], "answer": 0}`` each.

    ``join`` is what stands between context and choice, a space if it is not given.

    Raises:
        UserError: there is no such file, or a line is another one.
    """
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"choices.path {path}: {error}") from error
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            question = Question(
                str(entry["context"]),
                tuple(map(str, entry["choices"])),
                int(entry["answer"]),
                str(entry.get("join", " ")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: line {number} is not a question with context, choices, answer"
            ) from error
        if not 0 <= question.answer < len(question.choices) or len(question.choices) < 2:
            raise UserError(
                f"{path}: line {number}: answer {question.answer} of {len(question.choices)} choices; "
                "they are counted from 0, and at least two"
            )
        questions.append(question)
    if not questions:
        raise UserError(f"{path}: no questions")
    return questions


def text_side(text_tokenizer: str | Path, lms: Sequence[Path]) -> tuple[Encode, TokenSpace]:
    """What texts need of a model that is not exported: encode, and ids.

    Args:
        text_tokenizer: file or folder.
        lms: folders of language models; the first that is there and owns ids gives them.

    Raises:
        UserError: none does.
    """
    from omniaudio.config import build

    for path in (folder / "config.yaml" for folder in lms):
        node = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
        if "token_space" in node:
            space = build(node["token_space"], f"{path}: token_space", _parts_only=True)
            return TextTokenizer.from_file(text_tokenizer).encode, space
    raise UserError(f"no language model with audio in {', '.join(map(str, lms))}; train one first")


def text_ids(texts: Sequence[str], encode: Encode, max_pieces: int) -> list[Sequence[int]]:
    """Pieces of the held-out texts: evenly spaced lines, so that every source has its share."""
    ids = [encode(text) for text in texts]
    stride = max(1, -(-sum(map(len, ids)) // max_pieces))
    return ids[::stride]


def text_rows(
    models: Mapping[str, str | Path | nn.Module],
    ids: Sequence[Sequence[int]],
    benchmarks: Mapping[str, Sequence[Question]],
    space: TokenSpace,
    encode: Encode,
    track: Track,
    device: str = "cpu",
) -> list[Row]:
    """Perplexity and accuracies of every model, and how perplexity changed.

    Args:
        models: ``before``, ``after``, and others -> a text or audio LLM or its folder; one that is not there has a row.
        ids: pieces of the held-out texts.
        benchmarks: name -> questions.
    """
    from omniaudio.training.artifacts import load_module

    values: dict[str, float] = {}
    perplexities, accuracies = [], []
    for name, given in models.items():
        if not isinstance(given, nn.Module) and not Path(given).is_dir():
            title = f"text perplexity {name}"
            perplexities.append(Row(section=SECTION, name=title, value=None, text="not trained here"))
            continue
        part: Any = given if isinstance(given, nn.Module) else load_module(given, device)
        backbone = getattr(part, "backbone", part)
        stage = "as loaded" if isinstance(given, nn.Module) else Path(given).parent.parent.name
        values[name] = text_perplexity(backbone, space, ids, track)
        note = f"{stage}: per piece, {sum(map(len, ids))} pieces of held-out text"
        perplexities.append(
            Row(
                section=SECTION,
                name=f"text perplexity {name}",
                value=values[name],
                text=f"{values[name]:.2f}",
                note=note,
            )
        )
        for title, questions in benchmarks.items():
            found = answer_questions(backbone, space, encode, questions, track) if questions else None
            accuracies.append(accuracy_row(f"{title} {name}", stage, found))
    if {"before", "after"} <= values.keys():
        change = values["after"] / values["before"] - 1
        note = "after / before - 1"
        perplexities.append(
            Row(section=SECTION, name="change", value=change, text=f"{change:+.1%}", note=note)
        )
    return [*perplexities, *accuracies]


def accuracy_row(name: str, stage: str, found: Accuracy | None) -> Row:
    """Share, standard error, chance; None says that there were no questions."""
    if found is None:
        return Row(section=SECTION, name=name, value=None, text="held-out texts too short or too few")
    text = f"{found.share:.1%} ± {found.error:.1%}"
    note = f"{stage}: of {found.total} questions, standard error; chance {found.chance:.1%}"
    return Row(section=SECTION, name=name, value=found.share, text=text, note=note)
