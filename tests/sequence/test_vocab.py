import pytest

from omniaudio.errors import UserError
from omniaudio.sequence.vocab import SPECIALS, TokenSpace

RELEASED = {
    "bos_sys": 151665, "c_q": 151667, "c_a": 151668, "audio_start": 151676, "audio_end": 151677,
    "audio_pad": 151678, "audiotext_start": 151697, "audiotext_end": 151698, "audiotext_pad": 151699,
    "audiogen_start": 151700, "audiogen_end": 151701, "eos": 151643, "pad": 151643,
}  # fmt: skip


def test_specials_follow_the_text_and_the_total_is_rounded_up():
    space = TokenSpace(100, [8, 4], pad_to=64)
    assert [getattr(space, name) for name in SPECIALS] == list(range(100, 113))
    assert space.vocab_size == 128
    assert space.end_frame == (8, 4)
    assert space.audio_table_sizes == (9, 5)
    assert space.is_text(99)
    assert not space.is_text(space.eos)


def test_released_ids_fill_the_released_vocabulary():
    space = TokenSpace(151665, [8192] * 8, RELEASED, pad_to=512)
    assert space.vocab_size == 152064
    assert space.audio_pad == 151678
    assert space.eos == space.pad == 151643
    assert not space.is_text(151643)


def test_vocabulary_of_the_backbone_must_hold_all_ids():
    assert TokenSpace(100, vocab_size=113).vocab_size == 113
    with pytest.raises(UserError, match="at least 113"):
        TokenSpace(100, vocab_size=112)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_pad": 151665}, "bos_sys and audio_pad share"),
        ({"audio_pad": 17}, "an id of the text vocabulary"),
        ({"bos": 151643}, "pad and bos share|eos and bos share"),
        ({"audiopad": 1}, "unknown \\['audiopad'\\]"),
    ],
)
def test_wrong_special_ids_are_named(change, message):
    with pytest.raises(UserError, match=message):
        TokenSpace(151665, [8], {**RELEASED, **change})


def test_a_beginning_of_documents_may_be_an_id_of_the_text_model():
    plain, none, begun = (
        TokenSpace(151665, [8], {**RELEASED, **bos}) for bos in ({}, {"bos": None}, {"bos": 2})
    )
    assert plain.beginning == none.beginning == [] and begun.beginning == [2] and not begun.is_text(2)
    assert plain.fingerprint() == none.fingerprint() != begun.fingerprint()


def test_fingerprint_changes_with_books_and_ids():
    base = TokenSpace(100, [8, 4]).fingerprint()
    assert base != TokenSpace(100, [4, 8]).fingerprint()
    assert base != TokenSpace(101, [8, 4]).fingerprint()
    assert "codebook_sizes" not in TokenSpace(100).fingerprint()
