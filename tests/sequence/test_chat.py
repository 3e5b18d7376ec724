import numpy as np
import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.sequence.chat import ChatLayout, in_writing, unread
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL, Codes

SPACE = TokenSpace(128, [8, 4])
CHAT = ChatLayout(SPACE, lambda text: list(text.encode()))
A = np.array([[1, 2], [3, 0]])
S = SPACE


def test_text_reply_example():
    document = CHAT.document(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "ab"},
        ],
        "sft",
        "k",
    )
    assert document.ids_L.tolist() == [S.bos_sys, ord("s"), S.c_q, ord("u"), S.c_a, ord("a"), ord("b"), S.eos]
    assert document.text_label_L.tolist() == [NO_LABEL] * 4 + [ord("a"), ord("b"), S.eos, NO_LABEL]


def test_spoken_reply_to_heard_audio_example():
    codes = Codes(codes_BSK=torch.tensor([[[7, 3], [-1, -1]]]), num_frames_B=torch.tensor([1]))
    document = CHAT.document(
        [{"role": "user", "content": [codes, "u"]}, {"role": "assistant", "content": ["a", A, "b"]}],
        "sft",
        "k",
    )
    assert document.ids_L.tolist() == [
        S.bos_sys, S.c_q, S.audio_start, S.audio_pad, S.audio_end, ord("u"), S.audiotext_start, S.c_a,
        ord("a"), S.audiogen_start, S.audio_pad, S.audio_pad, S.audiogen_end, ord("b"), S.eos,
    ]  # fmt: skip
    no = NO_LABEL
    assert document.text_label_L.tolist() == [
        no, no, no, no, no, no, no, ord("a"), S.audiogen_start, no, no, no, ord("b"), S.eos, no
    ]  # fmt: skip
    assert document.codes_LK[3].tolist() == [7, 3]
    assert document.audio_label_LK[9:12].tolist() == [[1, 2], [3, 0], [8, 4]]


@pytest.mark.parametrize("content", ["ab", ["a", A]])
def test_prompt_is_the_head_of_the_document(content):
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": content}]
    document = CHAT.document(turns, "sft", "k")
    prompt = CHAT.prompt(turns[:1], "text" if isinstance(content, str) else "speech")
    assert prompt.ids_L.tolist() == document.ids_L[: len(prompt)].tolist()
    assert document.text_label_L[len(prompt) - 1] == ord("a")


def test_second_turn_follows_the_first():
    turns = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    assert CHAT.prompt(turns, "text").ids_L.tolist() == [
        S.bos_sys, S.c_q, ord("u"), S.c_a, ord("a"), S.eos, S.c_q, ord("v"), S.c_a
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "user", "content": "u"}], "must be the assistant's"),
        ([{"role": "usr", "content": "u"}, {"role": "assistant", "content": "a"}], "role 'usr'"),
        ([], "must be the assistant's"),
    ],
)
def test_wrong_chats_are_refused(turns, message):
    with pytest.raises(UserError, match=message):
        CHAT.document(turns, "sft", "k")


@pytest.mark.parametrize(
    ("role", "content", "text", "sounds", "written"),
    [
        ("user", "u", None, 0, ["u"]),
        ("user", [A, "Say it again."], "hello", 0, "hello Say it again."),
        ("user", ["Listen:", A, A], "two words", 0, "Listen: two words"),
        ("user", [A, "What?"], None, 1, None),
        ("assistant", ["A word.", A, " Hello.", A], None, 0, ["A word.", " Hello."]),
        ("assistant", [A, A], None, 2, None),
        ("assistant", A, "spoken alone", 0, "spoken alone"),
        ("assistant", [], None, 0, []),
    ],
)
def test_messages_in_writing(role, content, text, sounds, written):
    message = {"role": role, "content": content, **({"text": text} if text is not None else {})}
    assert len(unread(message)) == sounds
    if written is not None:
        assert in_writing(message) == {"role": role, "content": written}


def test_an_answer_alone_bears_loss_and_is_asked_for_as_told():
    earlier = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    prompt = [*earlier, {"role": "user", "content": "v"}]
    whole = CHAT.document([*prompt, {"role": "assistant", "content": ["b", A]}], "sft", "k")
    answer = CHAT.answered(prompt, ["b", A], True, "chosen", "k")
    assert answer.ids_L.tolist() == whole.ids_L.tolist() and answer.kind == "chosen"
    start = len(CHAT.prompt(prompt, "speech")) - 1
    assert answer.text_label_L[start:].tolist() == whole.text_label_L[start:].tolist()
    assert answer.audio_label_LK.tolist() == whole.audio_label_LK.tolist()
    assert set(answer.text_label_L[:start].tolist()) == {NO_LABEL} != set(whole.text_label_L[:start].tolist())
    written = CHAT.answered(prompt, ["b"], True, "rejected", "k")
    assert written.ids_L.tolist() == [*CHAT.prompt(prompt, "speech").ids_L.tolist(), ord("b"), S.eos]
    with pytest.raises(UserError, match="the last message before the reply must be the user's"):
        CHAT.answered(earlier, ["b"], False, "chosen", "k")


def test_bos_begins_chat_and_prompt():
    chat = ChatLayout(TokenSpace(128, [8, 4], {**S.special_ids, "bos": 2}), CHAT.encode)
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    document, no = chat.document(turns, "sft", "k"), NO_LABEL
    assert document.ids_L.tolist() == [2, S.bos_sys, S.c_q, ord("u"), S.c_a, ord("a"), S.eos]
    assert document.text_label_L.tolist() == [no, no, no, no, ord("a"), S.eos, no]
    assert document.part(1).ids_L.equal(CHAT.document(turns, "sft", "k").ids_L)
    assert chat.prompt(turns[:1], "text").ids_L.equal(document.ids_L[:5])
    assert chat.answered(turns[:1], ["a"], False, "chosen", "k").ids_L.equal(document.ids_L)
