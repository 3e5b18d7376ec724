import json

import pytest

from omniaudio.corpus import written_chats
from omniaudio.corpus.items import LeftOut
from omniaudio.corpus.written_chats import ChatFile, ChitchatChats
from omniaudio.errors import UserError


def told(*texts):
    return [{"text": text} for text in texts]


def test_conversations_become_chats_of_two_and_end_in_a_reply(monkeypatch):
    conversations = [
        {"messages": [told("Hi", "there"), told("Hello\u0000 you"), told("One more")]},
        {"messages": [told("alone")]},
        {"messages": [told("a"), told("b" * 30), told("c"), told("d")]},
        {"messages": [told(str(i)) for i in range(9)]},
    ]
    monkeypatch.setattr(written_chats, "chitchat_conversations", lambda: conversations)
    assert ChitchatChats(max_turns=4, max_chars=20).chats() == [
        [("user", "Hi there"), ("assistant", "Hello you")],
        [("user", "0"), ("assistant", "1"), ("user", "2"), ("assistant", "3")],
    ]


def test_the_packages_conversations_are_there():
    source = ChitchatChats()
    chats = source.chats()
    assert len(chats) > 1000 and "MIT" in source.attribution()
    assert all(
        role == ("user", "assistant")[i % 2] and text for chat in chats for i, (role, text) in enumerate(chat)
    )
    assert all(len(chat) % 2 == 0 and len(chat) <= 6 for chat in chats)


def test_messages_and_instructions_of_a_file(tmp_path):
    lines = [
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "output": "Hello"},
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ChatFile(str(path)).chats() == [
        [("system", "S"), ("user", "U")],
        [("user", "Add.\n1 2"), ("assistant", "3")],
        [("user", "Greet."), ("assistant", "Hello")],
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "c.jsonl:1: message 0: the role is 'robot'"),
        ({"messages": [{"role": "user"}]}, "c.jsonl:1: message 0: content is None, expected str"),
        ({"instruction": "x"}, "c.jsonl:1: output is None"),
        ({"question": "x"}, "c.jsonl:1: instruction is None"),
    ],
)
def test_what_is_no_chat_is_named(tmp_path, line, words):
    (tmp_path / "c.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=words):
        ChatFile(str(tmp_path / "c.jsonl")).chats()
    with pytest.raises(UserError, match=r"chat_source\.path .*no such file"):
        ChatFile(str(tmp_path / "none.jsonl")).chats()


def test_lines_that_are_no_chat_keep_their_place(tmp_path):
    good = {"instruction": "Greet.", "output": "Hello"}
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, {"instruction": "x"}, good)))
    chat = [("user", "Greet."), ("assistant", "Hello")]
    bad = LeftOut(
        name=f"{path}:2", reason="output is no str", detail="output is None, expected str", bad=True
    )
    assert ChatFile(str(path)).chats() == [chat, bad, chat]
