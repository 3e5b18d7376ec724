import base64
import json

import numpy as np
import pytest

from omniaudio.corpus.messages import ChatMessages
from omniaudio.data.chats import chat_facts
from omniaudio.errors import UserError
from omniaudio.frontend.audio import decode_audio, encode_audio

FLAC = encode_audio(np.full(1600, 0.1, np.float32), 16000)
DATA = base64.b64encode(FLAC).decode()


def corpus_of(tmp_path, *chats):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return ChatMessages(str(path), "en", "mine")


def test_sounds_of_all_forms_with_what_stands_around_them(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "q.flac").write_bytes(FLAC)
    content = [
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "flac"}, "transcript": "How are you"},
        {"type": "audio", "audio": "a/q.flac"},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/flac;base64,{DATA}"}},
        {"type": "text", "text": "Tell me."},
    ]
    chat = {
        "id": "first one",
        "language": "it",
        "messages": [
            {"role": "developer", "content": "You are brief."},
            {"role": "user", "content": content, "name": "anna"},
            {
                "role": "assistant",
                "content": None,
                "audio": {"data": DATA, "format": "flac", "transcript": "Yes."},
            },
            {"role": "assistant", "content": "Indeed.", "audio": {"path": "a/q.flac"}},
        ],
    }
    corpus = corpus_of(tmp_path, chat, {"messages": [{"role": "user", "content": "no sound"}]})
    found = corpus.inventory(tmp_path / "raw")
    assert [(entry.name, entry.reason) for entry in found.left_out] == [("mine-2", "chat without a sound")]
    assert [item.text for item in found.items] == ["How are you", "", "", "Yes.", "Indeed."]
    assert [item.wordless for item in found.items] == [False, True, True, False, False]
    assert [item.speaker for item in found.items] == ["anna"] * 3 + ["assistant"] * 2
    assert found.items[0].key == "first_one/0000" and found.items[0].language == "it"
    for item in found.items:
        assert decode_audio(item.path)[0].shape == (1, 1600)
    first, last = (chat_facts(found.items[i].chat, "") for i in (0, -1))
    assert json.loads(str(first["before"])) == [[0, "system", "You are brief."]]
    assert (last["turn"], last["turns"], last["turn_parts"]) == (3, 4, 1)


def test_a_reply_without_words_is_no_transcript(tmp_path):
    chat = {"messages": [{"role": "assistant", "content": [{"type": "audio", "audio": "x.wav"}]}]}
    (item,) = corpus_of(tmp_path, chat).inventory(tmp_path).items
    assert item.text is None and not item.wordless


def test_an_empty_transcript_is_none_and_what_a_user_writes_beside_a_sound_is_no_transcript(tmp_path):
    (tmp_path / "q.flac").write_bytes(FLAC)
    place = {"path": "q.flac"}
    chat = [
        {"role": "user", "content": "In one word.", "audio": {**place, "transcript": "What is it?"}},
        {"role": "assistant", "content": "", "audio": place},
        {"role": "user", "content": "Go on.", "audio": place},
        {"role": "assistant", "content": None, "audio": {**place, "transcript": ""}},
    ]
    items = corpus_of(tmp_path, {"messages": chat, "language": "zh-CN"}).inventory(tmp_path).items
    assert [item.text for item in items] == ["What is it?", None, "", None]
    assert {item.language for item in items} == {"zh"}
    assert json.loads(str(chat_facts(items[1].chat, "")["before"])) == [[0, "user", "In one word."]]


def test_a_chat_whose_id_came_before_is_left_out_whole(tmp_path):
    (tmp_path / "q.flac").write_bytes(FLAC)
    say = [{"role": "user", "content": [{"type": "audio", "audio": "q.flac"}]}]
    found = corpus_of(tmp_path, {"id": "x.y", "messages": say}, {"id": "x y", "messages": say * 3}).inventory(
        tmp_path
    )
    assert [item.key for item in found.items] == ["x_y/0000"]
    assert [(entry.name, entry.reason) for entry in found.left_out] == [("x_y", "duplicate id")]


def test_chats_that_cannot_be_used_are_counted(tmp_path):
    (tmp_path / "q.flac").write_bytes(FLAC)
    sound = {"role": "user", "content": [{"type": "audio", "audio": "q.flac"}]}
    image = {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url"}]}
    tool = {"role": "tool", "content": "4"}
    chats = [{"id": "a", "messages": [sound, image]}, {"id": "b", "messages": [sound, tool]}]
    good = {"id": "a", "messages": [sound]}
    found = corpus_of(tmp_path, *chats, good).inventory(tmp_path)
    assert [item.key for item in found.items] == ["a/0000"], "the bad chat of the same id does not count"
    path = tmp_path / "chats.jsonl"
    assert [(entry.name, entry.detail) for entry in found.left_out] == [
        (f"{path}:1: message 1, part 1", "type 'image_url', expected text, input_audio, audio, audio_url"),
        (f"{path}:2: message 1", "the role is 'tool', expected system (the first only), user, assistant"),
    ]
    assert [entry.reason for entry in found.left_out] == ["part of an unknown type", "unknown role"]


def test_empty_texts_and_messages_of_nothing_else_are_taken_out(tmp_path):
    (tmp_path / "q.flac").write_bytes(FLAC)
    sound = {"type": "audio", "audio": "q.flac"}
    chat = [
        {"role": "system", "content": ""},
        {"role": "user", "name": "eva", "content": [{"type": "text", "text": ""}, sound]},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
        {"role": "assistant", "content": "Yes."},
    ]
    (item,) = corpus_of(tmp_path, {"messages": chat}).inventory(tmp_path).items
    facts = chat_facts(item.chat, "")
    assert (item.speaker, facts["turn"], facts["turns"], facts["turn_parts"]) == ("eva", 0, 2, 1)
    assert "before" not in facts and json.loads(str(facts["after"])) == [[1, "assistant", "Yes."]]


def test_a_long_id_has_keys_that_fit(tmp_path):
    (tmp_path / "q.flac").write_bytes(FLAC)
    say = [{"role": "user", "content": [{"type": "audio", "audio": "q.flac"}]}]
    chats = [{"id": name, "messages": say} for name in ("x" * 88, "问题一", "问题二")]
    items = corpus_of(tmp_path, *chats).inventory(tmp_path).items
    assert len({item.key for item in items}) == 3 and all(len(item.key) <= 90 for item in items)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": 5}, "message 1: content is 5, expected"),
        (
            {"role": "user", "content": "half \ud83d"},
            "message 1: content is 'half \\ud83d', which is no text",
        ),
        ({"role": "tool", "content": "x"}, "message 1: the role is 'tool', expected system"),
        ({"role": "system", "content": "x"}, "message 1: the role is 'system'"),
        ({"role": "user"}, "message 1: has neither content nor audio"),
        ({"content": "x"}, "message 1: role is None, expected str"),
        ({"role": "user", "content": [{"type": "image"}]}, "message 1, part 0: type 'image', expected text"),
        (
            {"role": "user", "content": [{"type": "audio", "audio": "https://a.b/c.wav"}]},
            "is not on this machine",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": {"data": "%%", "format": "wav"}}],
            },
            "part 0: data is not base64",
        ),
        ({"role": "assistant", "audio": {"transcript": "x"}}, "message 1: audio: data is None, expected str"),
    ],
)
def test_what_is_no_chat_is_named_by_its_place(tmp_path, message, words):
    corpus = corpus_of(tmp_path, {"messages": [{"role": "user", "content": "x"}, message]})
    with pytest.raises(UserError, match=r"chats\.jsonl:1: ") as error:
        corpus.inventory(tmp_path)
    assert words in str(error.value)
