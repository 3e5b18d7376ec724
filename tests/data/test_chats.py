import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniaudio.data.chats import chat_facts, count_chats, exchanges, to_clips, to_messages
from omniaudio.errors import UserError

CHAT = [
    ("system", ["Be brief."]),
    ("user", ["Listen:", b"hello", "What was it?"]),
    ("assistant", [b"A word.", b"Hello."]),
    ("user", [b"bye"]),
    ("assistant", ["Only written."]),
]


def clips_of(chat, name="c", language="en"):
    """Facts and sounds as a reader would have them; a sound's words are the sound itself."""
    return [
        ({**facts, "text": sound.decode(), "language": language}, sound)
        for sound, facts in to_clips(chat, name)
    ]


def test_a_chat_comes_back_from_its_clips():
    messages = to_messages(clips_of(CHAT))
    assert messages == [
        {"role": "system", "content": ["Be brief."]},
        {"role": "user", "content": ["Listen:", b"hello", " What was it?"]},
        {"role": "assistant", "content": ["A word.", b"A word.", " Hello.", b"Hello."]},
        {"role": "user", "content": [b"bye"]},
        {"role": "assistant", "content": ["Only written."]},
    ]


def test_replies_in_text_have_no_sound_and_what_users_say_stays_sound():
    messages = to_messages(clips_of(CHAT), speech=False)
    assert messages[2]["content"] == ["A word.", " Hello."]
    assert messages[3]["content"] == [b"bye"]


def test_languages_without_spaces_get_none():
    assert to_messages(clips_of(CHAT, language="zh"))[2]["content"] == [
        "A word.",
        b"A word.",
        "Hello.",
        b"Hello.",
    ]


@pytest.mark.parametrize(
    ("lost", "turns", "counted"),
    [
        (0, 0, "without a whole reply"),  # what the user said first
        (1, 0, "without a whole reply"),  # the first half of the first reply
        (2, 0, "without a whole reply"),
        (3, 3, "cut"),  # the second question, and behind it the last reply
    ],
)
def test_a_message_with_a_hole_ends_the_chat(lost, turns, counted):
    clips = clips_of(CHAT)
    del clips[lost]
    messages = to_messages(clips)
    assert len(messages) == turns
    assert count_chats(facts for facts, _ in clips) == {counted: 1}


def test_a_reply_that_loses_what_is_written_behind_its_sound_is_no_reply():
    chat = [
        ("user", [b"q"]),
        ("assistant", [b"a", "And in writing."]),
        ("user", [b"r"]),
        ("assistant", [b"b"]),
    ]
    clips = clips_of(chat)
    del clips[2]  # carries the written end of the reply before it
    assert to_messages(clips) == []


def test_a_message_that_loses_its_only_sound_is_not_whole_by_its_text():
    chat = [("user", [b"a"]), ("assistant", [b"r"]), ("user", [b"b", "In one word."]), ("assistant", [b"s"])]
    clips = clips_of(chat)
    assert len(to_messages(clips)) == 4
    del clips[2]
    assert [m["content"] for m in to_messages(clips)] == [[b"a"], ["r", b"r"]]
    assert count_chats(facts for facts, _ in clips) == {"cut": 1}
    first = [("user", [b"a", "In one word."]), ("assistant", [b"r"])]
    assert to_messages(clips_of(first)[1:]) == []
    assert count_chats(facts for facts, _ in clips_of(first)[1:]) == {"without a whole reply": 1}


def test_a_chat_may_be_cut_behind_replies_that_have_a_sound():
    """What is only written stands in the facts of the sound behind it, so it goes with that."""
    said = [
        *CHAT,
        ("user", ["x"]),
        ("assistant", ["y"]),
        ("user", [b"u"]),
        ("assistant", ["z"]),
        ("user", ["v"]),
        ("assistant", ["w"]),
    ]
    found = exchanges(clips_of(said))
    assert [message for messages, _ in found for message in messages] == to_messages(clips_of(said))
    assert [(len(messages), num_clips) for messages, num_clips in found] == [(3, 3), (2, 1), (6, 1)]
    assert all(messages[-1]["role"] == "assistant" for messages, _ in found)
    in_text = exchanges(clips_of(said), speech=False)
    assert [num_clips for _, num_clips in in_text] == [3, 1, 1], "of all its clips, heard or not"
    assert exchanges(clips_of(CHAT)[1:]) == []


def test_messages_of_one_role_in_a_row_are_one():
    chat = [("user", [b"a"]), ("user", ["b"]), ("assistant", [b"c"])]
    assert [m["content"] for m in to_messages(clips_of(chat))] == [[b"a", " b"], ["c", b"c"]]


def test_chats_are_counted_by_what_is_left_of_them():
    whole, cut = clips_of(CHAT, "whole"), clips_of(CHAT, "cut")[:3]
    facts = [facts for facts, _ in (*cut, *whole)]
    assert count_chats(reversed(facts)) == {"whole": 1, "cut": 1}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant"]),
            st.lists(
                st.one_of(st.text(max_size=3), st.binary(max_size=3).map(lambda b: b.hex().encode())),
                min_size=1,
                max_size=3,
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_sound_and_no_text_is_lost(chat):
    clips = clips_of(chat)
    sounds = [part for _, parts in chat for part in parts if isinstance(part, bytes)]
    assert [sound for _, sound in clips] == sounds
    written = [
        text
        for facts, _ in clips
        for name in ("before", "after")
        for _, _, text in json.loads(facts.get(name, "[]"))
    ]
    if sounds:
        assert written == [part for _, parts in chat for part in parts if isinstance(part, str)]
        last = max((i for i, (role, _) in enumerate(chat) if role == "assistant"), default=-1)
        heard = [part for m in to_messages(clips) for part in m["content"] if isinstance(part, bytes)]
        assert heard == [part for _, parts in chat[: last + 1] for part in parts if isinstance(part, bytes)]


def test_facts_as_json_are_read_back_and_checked():
    facts = to_clips(CHAT, "c")[0][1]
    assert chat_facts(json.dumps(facts), "m.jsonl:3") == facts
    for wrong in ("", "[]", json.dumps({**facts, "role": "robot"}), json.dumps({**facts, "more": 1}),
                  json.dumps({**facts, "turn": "1"}), json.dumps({**facts, "before": "[[1]]"}),
                  json.dumps({k: v for k, v in facts.items() if k != "turns"})):  # fmt: skip
        with pytest.raises(UserError, match=r"m\.jsonl:3: chat is .*expected json with passage"):
            chat_facts(wrong, "m.jsonl:3")
