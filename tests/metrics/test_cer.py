import jiwer
import pytest

from omniaudio.metrics.cer import character_error_rate, word_error_rate


def test_hand_value():
    result = character_error_rate(["abcd"], ["abxd e"], ["en"])  # one substitution, two insertions (" e")
    assert (result.num_edits, result.num_units) == (3, 4)
    assert result.rate == 0.75


def test_words():
    result = word_error_rate(["Hello there, world!"], ["hello world two"], ["en"])
    assert (result.num_edits, result.num_units) == (2, 3)


def test_case_and_punctuation_do_not_count():
    assert character_error_rate(["Hello, World!"], ["hello world"], ["it"]).num_edits == 0


def test_edits_are_summed_over_sentences_not_averaged():
    result = character_error_rate(["aaaaaaaaaa", "b"], ["aaaaaaaaaa", "c"], ["en", "en"])
    assert result.rate == pytest.approx(1 / 11)


def test_equals_the_library():
    references, hypotheses = ["the agent is busy", "press one"], ["the agent was bus", ""]
    assert character_error_rate(references, hypotheses, ["en", "en"]).rate == pytest.approx(
        jiwer.cer(references, hypotheses)
    )
    assert word_error_rate(references, hypotheses, ["en", "en"]).rate == jiwer.wer(references, hypotheses)


def test_a_reference_without_characters_is_refused():
    with pytest.raises(AssertionError, match="without characters"):
        character_error_rate(["?!"], ["a"], ["en"])


def test_languages_without_spaces_do_not_count_them():
    assert character_error_rate(["你好世界"], ["你好 世界"], ["zh"]).num_edits == 0
