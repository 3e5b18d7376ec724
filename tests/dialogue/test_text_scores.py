"""Perplexity and questions, on models whose answers are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from omniaudio.dialogue import text_scores
from omniaudio.dialogue.text_scores import Accuracy, Question, answer_questions, next_words, read_questions
from omniaudio.errors import UserError
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.sequence.vocab import TokenSpace


def quiet(items, description):
    return items


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    space = TokenSpace(text_vocab_size=20, pad_to=1)
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "ffn_size": 8}
    backbone = CausalBackbone(vocab_size=space.vocab_size, **sizes)
    torch.nn.init.zeros_(backbone.lm_head.weight)
    value = text_scores.text_perplexity(backbone, space, [[1, 2, 3], [4], []], quiet)
    assert value == pytest.approx(space.vocab_size, rel=1e-4)


def test_perplexity_does_not_depend_on_packing(model):
    ids = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    values = [
        text_scores.text_perplexity(model.lm.backbone, model.lm.token_space, ids, quiet, max_positions=n)
        for n in (5, 64)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5) and math.isfinite(values[0])
    with pytest.raises(UserError, match="no pieces"):
        text_scores.text_perplexity(model.lm.backbone, model.lm.token_space, [[]], quiet)


class Counts(nn.Module):
    """A text model that knows one thing: letters follow in the order of the alphabet, with odds of e ** 3."""

    def __init__(self, num_ids: int) -> None:
        super().__init__()
        self.table = nn.Parameter(3.0 * torch.eye(num_ids).roll(1, dims=1))
        self.read: list[list[int]] = []

    def embed_text(self, ids_L):
        self.read.append(ids_L.tolist())
        return self.table[ids_L]

    def forward(self, embeds_LD, doc_len_G):
        return embeds_LD

    def text_loss(self, hidden_LD, label_L):
        return nn.functional.cross_entropy(hidden_LD, label_L, ignore_index=-100, reduction="none")


def letters(text: str) -> list[int]:
    return [ord(char) - ord("a") for char in text if char != " "]


def counting(
    questions: list[Question], max_positions: int = 64, bos: int | None = None
) -> tuple[Accuracy, Counts]:
    space = TokenSpace(26, special_ids={**TokenSpace(26).special_ids, "bos": bos}, pad_to=1)
    model = Counts(space.vocab_size)
    found = answer_questions(model, space, letters, questions, quiet, max_positions)  # type: ignore[arg-type]
    return found, model


def test_the_likeliest_choice_by_piece_is_the_answer() -> None:
    """The mean over its pieces, of the choice alone: neither its length, nor its context, nor its end counts."""
    questions = [
        Question("a b", ("c", "x"), 0),
        Question("a b", ("x", "c d e f g h"), 1),  # six pieces lose more than one
        Question("k k k", ("l", "l m n"), 0),  # equally likely by piece: the first
        Question("a b", ("x", "c"), 0),  # wrong
        Question("", ("a b", "b a", "a a"), 0),
    ]
    found, model = counting(questions)
    assert (found.right, found.total) == (4, 5)
    assert found.chance == pytest.approx((4 / 2 + 1 / 3) / 5)
    assert found.error == pytest.approx(math.sqrt(0.8 * 0.2 / 5))
    assert len(model.read) < 11 and max(map(len, model.read)) <= 64, "several in one pass"


def test_of_a_long_context_the_end_is_read() -> None:
    found, model = counting([Question("q " * 40 + "b", ("x", "c d"), 1)], max_positions=8)
    assert found.right == 1
    assert all(len(ids) <= 8 and letters("q")[0] in ids and 1 in ids for ids in model.read)
    with pytest.raises(UserError, match="has 9 pieces to score; must be 1 to 6"):
        counting([Question("a", ("b" * 9, "c"), 0)], max_positions=8)
    with pytest.raises(UserError, match="'' has 0 pieces"):
        counting([Question("a", ("", "c"), 0)])


def test_with_bos_the_first_piece_of_a_text_is_scored_too() -> None:
    """``z`` begins texts here, behind which the model expects the next id: bos_sys, and never a letter."""
    found, model = counting([Question("", ("b", "a b"), 1), Question("a b", ("x", "c d"), 1)], 8, bos=25)
    assert found.right == 2 and [ids for ids in model.read if ids.count(25) != ids.count(26 + 11)] == []
    space = TokenSpace(26, special_ids={**TokenSpace(26).special_ids, "bos": 25}, pad_to=1)
    losses = list(text_scores.text_losses(model, space, [[0], [0, 1]], quiet, 8))  # type: ignore[arg-type]
    assert [len(loss) for loss in losses] == [2, 3], "of every piece and of the end"
    with pytest.raises(UserError, match="has 9 pieces to score; must be 1 to 6"):
        counting([Question("", ("b" * 9, "c"), 0)], max_positions=8, bos=25)


TEXTS = [
    " ".join(f"{name}{i}" for i in range(length))
    for name, length in zip("abcde", (24, 7, 6, 12, 5), strict=True)
]


def test_questions_of_held_out_texts() -> None:
    questions = next_words(TEXTS, num_questions=100, num_choices=3, context_words=4, choice_words=2)
    assert [question.context for question in questions[:2]] == ["a0 a1 a2 a3", "a6 a7 a8 a9"]
    assert len(questions) == 4 + 1 + 1 + 2, "the last text is too short"
    for question in questions:
        whole = question.context + question.join + question.choices[question.answer]
        assert any(whole in text for text in TEXTS)
        owners = [choice[0] for choice in question.choices]
        assert len(set(owners)) == 3 and owners[question.answer] == question.context[0], (
            "each of another text"
        )
    assert len({question.answer for question in questions}) == 3
    assert questions == next_words(TEXTS, 100, 3, 4, 2), "the same every time"
    few = next_words(TEXTS, 4, 3, 4, 2)
    assert [question.context[:2] for question in few] == ["a0", "a1", "b0", "d0"]
    assert next_words(TEXTS, 100, 5, 4, 2) == [], "four texts are long enough"
    with pytest.raises(UserError, match="num_choices 1 must be at least 2"):
        next_words(TEXTS, 4, 1, 4, 2)


def test_questions_of_a_file(tmp_path) -> None:
    path = tmp_path / "arc.jsonl"
    entries = [
        {"context": "Is it?", "choices": ["yes", "no"], "answer": 1, "label": "B"},
        {"context": "他", "choices": ["好", "不"], "answer": 0, "join": ""},
    ]
    path.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    assert read_questions(path) == [Question("Is it?", ("yes", "no"), 1), Question("他", ("好", "不"), 0, "")]
    for line, message in [
        ("no json", "line 2 is not a question with context, choices, answer"),
        ('{"context": "a", "choices": ["b", "c"]}', "line 2 is not a question"),
        (
            '{"context": "a", "choices": ["b", "c"], "answer": 2}',
            "line 2: answer 2 of 2 choices; they are counted",
        ),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "line 2: answer 0 of 1 choices"),
    ]:
        path.write_text(f"{json.dumps(entries[0])}\n{line}\n")
        with pytest.raises(UserError, match=message):
            read_questions(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="no questions"):
        read_questions(path)
    with pytest.raises(UserError, match="choices.path .*none.jsonl"):
        read_questions(tmp_path / "none.jsonl")


def test_rows_say_what_was_not_there(tmp_path) -> None:
    space = TokenSpace(text_vocab_size=26, pad_to=1)
    models = {"before": tmp_path / "none", "after": tmp_path / "neither"}
    rows = text_scores.text_rows(models, [[1, 2]], {"next words": []}, space, letters, quiet)
    assert [(row.name, row.text) for row in rows] == [
        ("text perplexity before", "not trained here"),
        ("text perplexity after", "not trained here"),
    ]
    assert text_scores.accuracy_row("next words", "sft", None).value is None
    row = text_scores.accuracy_row("next words", "sft", Accuracy(30, 40, 0.25))
    assert (row.value, row.text) == (0.75, "75.0% ± 6.8%")
    assert row.note == "sft: of 40 questions, standard error; chance 25.0%"


def test_without_an_export_the_ids_are_those_of_a_language_model_with_audio(tmp_path):
    with pytest.raises(UserError, match=r"no language model with audio in .*; train one first"):
        text_scores.text_side(tmp_path / "tokenizer.json", [tmp_path])
