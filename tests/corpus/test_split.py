import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniaudio.corpus.split import check_fractions, split_of
from omniaudio.errors import UserError

FRACTIONS = {"train": 0.9, "dev": 0.05, "test": 0.05}


@given(st.text())
def test_a_text_has_one_split_however_it_is_written(text):
    split = split_of(text, "en", FRACTIONS)
    assert split == split_of(f"  {text}!! ", "fr", FRACTIONS)
    assert split == split_of(text.casefold(), "es", FRACTIONS)


def test_shares_are_about_those_of_the_config():
    splits = [split_of(f"text {i}", "en", FRACTIONS) for i in range(4_000)]
    assert 0.88 < splits.count("train") / 4_000 < 0.92
    assert 0.04 < splits.count("dev") / 4_000 < 0.06
    assert 0.04 < splits.count("test") / 4_000 < 0.06


def test_the_test_split_does_not_move_when_dev_grows():
    larger = {"train": 0.7, "dev": 0.25, "test": 0.05}
    texts = [f"text {i}" for i in range(500)]
    moved = [(split_of(t, "en", FRACTIONS), split_of(t, "en", larger)) for t in texts]
    assert all((a == "test") == (b == "test") for a, b in moved)
    assert all(b == "dev" for a, b in moved if a == "dev")


@pytest.mark.parametrize(
    "fractions",
    [{"train": 1.0}, {"train": 0.9, "dev": 0.05, "test": 0.1}, {"train": 1.1, "dev": -0.1, "test": 0.0}],
)
def test_impossible_shares_are_refused(fractions):
    with pytest.raises(UserError, match="1 in all"):
        check_fractions(fractions)
