import numpy as np

from omniaudio.sequence.chat import ChatLayout
from omniaudio.sequence.show import pieces_of
from omniaudio.sequence.spans import DocumentLayouts
from omniaudio.sequence.vocab import TokenSpace

SPACE = TokenSpace(256, [8, 4])
CODES = np.array([[1, 2], [5, 3], [0, 0]])


def shown(document):
    return pieces_of(document, SPACE, lambda ids: bytes(ids).decode())


def test_recognition_learns_the_transcript_alone():
    document = DocumentLayouts(SPACE).asr("k", list(b"Write: "), CODES, list(b"hello"))
    assert shown(document) == [
        ("Write: ", False), ("<audio_start>", False), ("<3 frames>", False), ("<audio_end>", False),
        ("hello", True), ("<eos>", True),
    ]  # fmt: skip


def test_speech_that_is_learned_is_told_from_speech_that_is_given():
    segments = [(list(b"one"), CODES), (list(b"two"), CODES[:2])]
    assert shown(DocumentLayouts(SPACE).itts("k", list(b"P "), segments)) == [
        ("P one", False), ("<audiogen_start>", True), ("<3 frames>", True), ("<audiogen_end>", False),
        ("two", True), ("<audiogen_start>", True), ("<2 frames>", True), ("<audiogen_end>", False), ("<eos>", True),
    ]  # fmt: skip
    assert shown(DocumentLayouts(SPACE).intlv("k", list(b"P "), segments, audio_first=False)) == [
        ("P ", False), ("one", True), ("<audio_start>", False), ("<2 frames>", False), ("<audio_end>", False),
        ("<eos>", False),
    ]  # fmt: skip


def test_a_chat_shows_its_turns():
    messages = [
        {"role": "user", "content": [CODES, "Again?"]},
        {"role": "assistant", "content": ["Yes", CODES[:1]]},
    ]
    document = ChatLayout(SPACE, lambda text: list(text.encode())).document(messages, "sft", "k")
    assert [piece for piece, _ in shown(document)] == [
        "<bos_sys>", "<c_q>", "<audio_start>", "<3 frames>", "<audio_end>", "Again?", "<audiotext_start>", "<c_a>",
        "Yes", "<audiogen_start>", "<1 frames>", "<audiogen_end>", "<eos>",
    ]  # fmt: skip
    learned = "".join(piece for piece, taught in shown(document) if taught)
    assert learned == "Yes<audiogen_start><1 frames><eos>"
