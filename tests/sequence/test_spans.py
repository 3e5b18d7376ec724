"""Every layout against an example written by hand."""

import numpy as np
import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.sequence.spans import DocumentBuilder, DocumentLayouts, LengthBuilder, pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL

SPACE = TokenSpace(100, [8, 4])
LAYOUTS = DocumentLayouts(SPACE)
A = np.array([[1, 2], [3, 0]], dtype=np.uint16)  # two frames
B = np.array([[7, 3]])  # one frame
END = (8, 4)
NO = (NO_LABEL, NO_LABEL)
HEAR, HEARD, PAD = SPACE.audio_start, SPACE.audio_end, SPACE.audio_pad
SAY, SAID, EOS = SPACE.audiogen_start, SPACE.audiogen_end, SPACE.eos


def check(document, kind, expected):
    """``expected``: (id, text label or None, audio label or None, codes or None) by position."""
    assert document.kind == kind
    ids, texts, audios, codes = zip(*expected, strict=True)
    assert document.ids_L.tolist() == list(ids)
    assert document.text_label_L.tolist() == [NO_LABEL if t is None else t for t in texts]
    assert document.audio_label_LK.tolist() == [list(a or NO) for a in audios]
    assert document.codes_LK.tolist() == [list(c or (0, 0)) for c in codes]


def heard(codes, after=None):
    return [
        (HEAR, None, None, None),
        *[(PAD, None, None, tuple(c)) for c in codes.tolist()],
        (HEARD, after, None, None),
    ]


def spoken(codes, after=None):
    frames = [tuple(c) for c in codes.tolist()]
    return [
        (SAY, None, frames[0], None),
        *[(PAD, None, following, frame) for frame, following in zip(frames, [*frames[1:], END], strict=True)],
        (SAID, after, None, None),
    ]


@pytest.mark.parametrize("kind", ["asr", "aqa", "s2tt"])
def test_answer_bears_loss_alone(kind):
    check(
        LAYOUTS.answer(kind, "k", [10, 11], A, [20, 21]),
        kind,
        [(10, None, None, None), (11, None, None, None), *heard(A, after=20), (20, 21, None, None),
         (21, EOS, None, None), (EOS, None, None, None)],
    )  # fmt: skip


def test_tts_loss_is_on_audio_and_its_start():
    check(
        LAYOUTS.tts("k", [10, 11], A),
        "tts",
        [(10, None, None, None), (11, SAY, None, None), *spoken(A, after=EOS), (EOS, None, None, None)],
    )


def test_pure_audio():
    check(LAYOUTS.audio("k", A), "audio", [*spoken(A, after=EOS), (EOS, None, None, None)])


def test_text_only():
    check(
        LAYOUTS.text("k", [10, 11]),
        "text",
        [(10, 11, None, None), (11, EOS, None, None), (EOS, None, None, None)],
    )


def test_intlv_audio_first_has_loss_on_text_only():
    check(
        LAYOUTS.intlv("k", [5], [([10], A), ([20, 21], B), ([30], B)], audio_first=True),
        "intlv",
        [(5, None, None, None), *heard(A, after=20), (20, 21, None, None), (21, None, None, None), *heard(B),
         (EOS, None, None, None)],
    )  # fmt: skip


def test_intlv_text_first():
    check(
        LAYOUTS.intlv("k", [5], [([10], A), ([20, 21], B), ([30], B)], audio_first=False),
        "intlv",
        [(5, 10, None, None), (10, None, None, None), *heard(B, after=30), (30, EOS, None, None),
         (EOS, None, None, None)],
    )  # fmt: skip


def test_intlv_ablation_speaks_its_audio():
    layouts = DocumentLayouts(SPACE, loss_on_intlv_audio=True)
    check(
        layouts.intlv("k", [5], [([10], A), ([20], B)], audio_first=True),
        "intlv",
        [(5, SAY, None, None), *spoken(A, after=20), (20, EOS, None, None), (EOS, None, None, None)],
    )


def test_itts_has_loss_on_all_but_the_first_text():
    check(
        LAYOUTS.itts("k", [5], [([10, 11], A), ([20, 21], B)]),
        "itts",
        [(5, None, None, None), (10, None, None, None), (11, SAY, None, None), *spoken(A, after=20),
         (20, 21, None, None), (21, SAY, None, None), *spoken(B, after=EOS), (EOS, None, None, None)],
    )  # fmt: skip


def test_last_text_before_speech_stays():
    document = LAYOUTS.itts("k", [], [([10, 11], A)])
    assert document.ids_L[:3].tolist() == [10, 11, SAY]


def test_pack_lays_documents_end_to_end():
    first, second = LAYOUTS.tts("a", [10], A), LAYOUTS.text("b", [20, 21])
    batch = pack([first, second])
    assert batch.doc_len_G.tolist() == [len(first), len(second)]
    assert batch.kinds == ["tts", "text"]
    assert batch.keys == ["a", "b"]
    assert torch.equal(batch.ids_L, torch.cat([first.ids_L, second.ids_L]))
    assert torch.equal(batch.audio_label_LK[: len(first)], first.audio_label_LK)
    assert batch.text_label_L[len(first) - 1] == NO_LABEL, "a document's end predicts nothing of the next"


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 2), int), "at least one frame"),
        (np.zeros((3, 1), int), "of 2 books"),
        (np.array([[8, 0]]), "outside the books"),
        (np.array([[-1, 0]]), "outside the books"),
    ],
)
def test_wrong_codes_are_refused(codes, message):
    with pytest.raises(UserError, match=message):
        DocumentBuilder(SPACE).heard(codes)
    with pytest.raises(UserError, match=message):
        DocumentBuilder(SPACE).spoken(codes, loss=True)


def test_the_parts_of_a_document_are_the_document():
    document = LAYOUTS.tts("k", [5, 6], A)
    parts = document.part(0, 3).followed_by(document.part(3, -1)).followed_by(document.part(-1))
    assert repr(parts) == repr(document) and len(document.part(1, 3)) == 2


def test_bos_begins_every_document_and_is_no_label():
    """Beside it, nothing changes but that the first of a text, or of audio alone, is predicted from it."""
    begun = DocumentLayouts(TokenSpace(100, [8, 4], {**SPACE.special_ids, "bos": 2}))
    check(
        LAYOUTS.text("k", [20, 21]),
        "text",
        [(20, 21, None, None), (21, EOS, None, None), (EOS, None, None, None)],
    )
    check(
        begun.text("k", [20, 21]),
        "text",
        [(2, 20, None, None), (20, 21, None, None), (21, EOS, None, None), (EOS, None, None, None)],
    )
    segments = [([10], A), ([11], B)]
    for make, first in (
        (lambda layouts: layouts.asr("k", [10], A, [20]), None),
        (lambda layouts: layouts.tts("k", [10], A), None),
        (lambda layouts: layouts.audio("k", A), SAY),
        (lambda layouts: layouts.intlv("k", [9], segments), None),
        (lambda layouts: layouts.itts("k", [9], segments), None),
    ):
        plain, document = make(LAYOUTS), make(begun)
        assert document.ids_L.tolist() == [2, *plain.ids_L.tolist()]
        first_label = NO_LABEL if first is None else first
        assert document.text_label_L.tolist() == [first_label, *plain.text_label_L.tolist()]
        assert document.part(1).audio_label_LK.equal(plain.audio_label_LK)
    tts, prompt = begun.tts("k", [10, 11], A), begun.to_read("k", [10, 11])
    assert prompt.ids_L.tolist() == [2, 10, 11] == tts.ids_L[:3].tolist()
    counted = DocumentLayouts(begun.space, builder=LengthBuilder)
    assert len(counted.tts("k", [10, 11], A)) == len(tts)
