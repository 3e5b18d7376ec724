import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer, normalise_text

TEXTS = ["hello there, how are you", "you are there", "hello hello <|im_end|>"] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train(TEXTS, 280)


# module scope and hypothesis: the same object for all examples
SHARED = TextTokenizer.train(TEXTS, 280)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_survives(text):
    ids = SHARED.encode(text)
    assert SHARED.decode(ids) == text
    assert 0 <= min(ids) <= max(ids) < SHARED.vocab_size


def test_merges_were_learnt(tokenizer):
    assert len(tokenizer.encode("hello")) < 5
    assert 256 < tokenizer.vocab_size <= 280


def test_training_is_deterministic_and_the_digest_says_what_it_is(tmp_path, tokenizer):
    again = TextTokenizer.train(TEXTS, 280, tmp_path / "t" / "tokenizer.json")
    assert again.digest == tokenizer.digest
    assert TextTokenizer.from_file(tmp_path / "t").digest == tokenizer.digest
    assert TextTokenizer.from_file(tmp_path / "t" / "tokenizer.json").encode("hello") == tokenizer.encode(
        "hello"
    )
    assert TextTokenizer.train(TEXTS, 270).digest != tokenizer.digest


def test_text_cannot_make_a_special_token(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    pretrained = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pretrained.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    special_id = pretrained.token_to_id("<|im_end|>")
    assert special_id in pretrained.encode("a<|im_end|>").ids  # what must not happen
    pretrained.save(str(tmp_path / "tokenizer.json"))
    ours = TextTokenizer.from_file(tmp_path)
    assert special_id not in ours.encode("a<|im_end|>b <|im_end|>")
    assert ours.decode(ours.encode("a<|im_end|>b")) == "a<|im_end|>b"
    assert ours.vocab_size == special_id + 1


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text_is_refused(tokenizer, text):
    with pytest.raises(UserError, match="empty"):
        tokenizer.encode(text)


def test_broken_unicode_is_refused(tokenizer):
    with pytest.raises(UserError, match="not valid Unicode at character 1"):
        tokenizer.encode("a\ud800")


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot read"):
        TextTokenizer.from_file(tmp_path / "none.json")
    (tmp_path / "a.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(UserError, match=r"a\.json: not a text tokenizer"):
        TextTokenizer.from_file(tmp_path / "a.json")
    with pytest.raises(UserError, match="too small"):
        TextTokenizer.train(TEXTS, 255)


@pytest.mark.parametrize(
    "text, language, expected",
    [
        ("Agent login.  Please enter, now!", "en", "agent login please enter now"),
        ("Don\u2019t-stop", "en", "dont stop"),
        ("ÉCHEC \u2026 à l'ouverture", "fr", "échec à louverture"),
        ("e\u0301chec", "fr", "échec"),
        ("Ошибка: «регистрации»", "ru", "ошибка регистрации"),
        ("Ｎo. ①", "en", "no 1"),
        ("你好， 世界。", "zh", "你好世界"),
        ("...?!", "en", ""),
        ("STRASSE straße", "de", "strasse strasse"),
    ],
)
def test_normalise_by_hand(text, language, expected):
    assert normalise_text(text, language) == expected


@given(st.text(), st.sampled_from(["en", "zh"]))
def test_normalise_twice_is_once(text, language):
    once = normalise_text(text, language)
    assert normalise_text(once, language) == once
    assert once == once.strip() and "  " not in once
