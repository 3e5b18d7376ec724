import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniaudio.corpus.build.segment import Segment
from omniaudio.corpus.build.text_steps import Normalise, Speakable, SplitText
from omniaudio.errors import UserError


def split(text, language="en", **settings):
    return SplitText(**settings).split(text, language)


def test_sentences_end_at_their_marks_and_not_inside_numbers():
    text = 'He said "No." Then it cost 3.50 dollars! Did it? Yes, on www.here.org it did.'
    assert split(text, min_chars=0) == [
        'He said "No."', "Then it cost 3.50 dollars!", "Did it?", "Yes, on www.here.org it did.",
    ]  # fmt: skip
    assert split("今天天气不错。我们走吧！好。", "zh", min_chars=0) == [
        "今天天气不错。",
        "我们走吧！",
        "好。",
    ]


def test_short_sentences_join_and_long_ones_are_cut_at_clauses():
    assert split("Yes. No. Well, that is a longer one.", min_chars=12) == [
        "Yes. No. Well, that is a longer one."
    ]
    assert split("One two three. Four five six.", min_chars=12) == ["One two three.", "Four five six."]
    long = "first part of it, second part of it, and a third part without any mark at all"
    assert split(long, min_chars=0, max_chars=39) == [
        "first part of it, second part of it,", "and a third part without any mark at", "all",
    ]  # fmt: skip
    assert split("x" * 25, max_chars=20, min_chars=0) == ["x" * 20, "x" * 5]


@given(st.text(alphabet="ab .,!?1\n", max_size=200), st.integers(5, 40))
def test_nothing_is_lost_and_none_is_too_long(text, most):
    parts = split(text, min_chars=3, max_chars=most)
    assert "".join(" ".join(parts).split()) == "".join(text.split())
    assert all(0 < len(part) <= most for part in parts)


def test_segments_are_numbered_in_their_passage():
    segment = Segment(
        key="t/0000", passage="t", text="One two three four. Five six seven eight.", language="en"
    )
    assert [(s.key, s.place, s.text) for s in SplitText()([segment])] == [
        ("t/0000", 0, "One two three four."), ("t/0001", 1, "Five six seven eight."),
    ]  # fmt: skip
    with pytest.raises(UserError, match="min_chars 9 and max_chars 9"):
        SplitText(9, 9)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("See https://example.org/a for more.", "text: a link"),
        ("Write to me@example.org please", "text: a link"),
        ("for (i = 0; i < n; i++) { f(); }", "text: code"),
        ("import numpy as np", "text: code"),
        ("| a | b |", "text: a table"),
        ("name\tvalue", "text: a table"),
        ("so $x^2$ is", "text: a formula"),
        ("E = mc2 holds", "text: a formula"),
        ("?!...", "text: no words"),
        ("a *** >>> ### @@@ b", "text: few letters"),
        ("so $x$ is", "text: a formula"),
        ("as $a_1$ is", "text: a formula"),
        ("It costs $5 today, not $6.", ""),
        ("def f(x):", "text: code"),
        ("class Reader(Base):", "text: code"),
        ("from os import path", "text: code"),
        ("import os.path", "text: code"),
        ("SELECT name FROM people", "text: code"),
        ("Then:\nreturn x;\nand so on", "text: code"),
        ("print(x);", "text: code"),
        ("class is over.", ""),
        ("def jam is a band,", ""),
        ("import duties rise as trade grows.", ""),
        ("SELECT what you like.", ""),
        ("The moon is low;\nthe night is long;", ""),
        ("It costs 12 dollars and 50 cents, doesn't it?", ""),
        ("Contraseña incorrecta.", ""),
        ("今天天气不错。", ""),
        ("नमस्ते दुनिया", ""),
    ],
)
def test_what_nobody_reads_aloud(text, fault):
    assert Speakable().fault(text) == fault
    (judged,) = Speakable()([Segment(key="a", passage="p", text=text)])
    assert judged.fault == fault


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("This is what you write:\n\n    import numpy as np\n\nNow it is there.", {"text: code"}),
        ("The names are these.\nann\tbob\n", {"text: a table", ""}),
        ("\tA line that is indented\nand goes on in the next.", {""}),
        ("We talk about imports and\nimport duties, as they say.", {""}),
    ],
)
def test_lines_and_tabs_are_judged_and_then_folded(text, faults):
    parts = SplitText(min_chars=0)([Segment(key="a", passage="p", text=text, language="en")])
    judged = Speakable()(parts)
    assert {part.fault for part in judged} == faults
    assert " ".join(part.text for part in judged) == " ".join(text.split())


def test_numbers_become_words_in_english_and_chinese():
    normalise = Normalise()
    assert normalise.spoken("It costs $12.50.", "en") == "It costs twelve point five dollars."
    assert "二十五摄氏度" in normalise.spoken("气温25℃", "zh")
    assert normalise.spoken("Costa 12 euro", "it") == "Costa 12 euro"
    assert normalise.spoken("Room #8 has 3 beds.", "en") == "Room #8 has three beds.", (
        "wetext ends in an assertion"
    )
    (segment,) = normalise([Segment(key="a", passage="p", text="It is 3.", language="en")])
    assert (segment.text, segment.spoken) == ("It is 3.", "It is three.")


def test_what_is_written_around_a_split_message_stays_at_its_ends():
    before, after = ((0, "system", "S"),), ((2, "assistant", "A"),)
    segment = Segment(
        key="c/0000", passage="c", text="One two. Three four.", role="user", before=before, after=after
    )
    parts = SplitText(min_chars=0, max_chars=12)([segment])
    assert [(part.text, part.before, part.after) for part in parts] == [
        ("One two.", before, ()), ("Three four.", (), after),
    ]  # fmt: skip
