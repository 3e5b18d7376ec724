"""Chats in shards: every sound of a chat is a clip of its own, and its facts say what stands around it.

A chat is a passage, its clips follow each other in one split, and each has the facts

    passage, place   of which chat it is a part, and where among its sounds
    role, turn       who says it, and in which message of the chat, from 0
    turns            messages of the chat
    turn_parts       sounds and texts of that message
    before           json [[turn, role, text], ...]: what is only written, between the sound before it and this one
    after            the same behind the last sound

A message that lacks a part (a refused clip) ends its chat: nobody learns from a reply with a hole, or to a question
that was not heard.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from omniaudio.errors import UserError
from omniaudio.frontend.text import UNSPACED_LANGUAGES
from omniaudio.sequence.chat import Message, Role, Segment

ROLES: tuple[Role, ...] = get_args(Role)
FACTS = {
    "passage": str,
    "place": int,
    "role": str,
    "turn": int,
    "turns": int,
    "turn_parts": int,
    "before": str,
    "after": str,
}
OPTIONAL = ("before", "after")

Written = tuple[int, Role, str]


def to_clips(
    messages: Sequence[tuple[Role, Sequence[Any]]], passage: str
) -> list[tuple[Any, dict[str, int | str]]]:
    """A chat as sounds with their facts; empty if it has no sound.

    Args:
        messages: role and parts of every message; a part that is a str is a text, anything else a sound.
        passage: name of the chat.
    """
    clips: list[tuple[Any, dict[str, int | str]]] = []
    written: list[Written] = []
    for turn, (role, parts) in enumerate(messages):
        for part in parts:
            if isinstance(part, str):
                written.append((turn, role, part))
                continue
            facts: dict[str, int | str] = {
                "passage": passage, "place": len(clips), "role": role,
                "turn": turn, "turns": len(messages), "turn_parts": len(parts),
            }  # fmt: skip
            if written:
                facts["before"] = json.dumps(written, ensure_ascii=False)
            clips.append((part, facts))
            written = []
    if clips and written:
        clips[-1][1]["after"] = json.dumps(written, ensure_ascii=False)
    return clips


def to_messages(clips: Iterable[tuple[Mapping[str, Any], Segment]], speech: bool = True) -> list[Message]:
    """The chat that its clips, in their order, tell of, up to the last reply before a message that lacks a part.

    Args:
        clips: facts (those above, ``text`` and ``language``) and codes of every clip.
        speech: replies are text and sound in turn; else their text alone. What users say is sound alone.

    Returns:
        messages that end with the assistant's; empty if no reply is whole.
    """
    return [message for message, _ in _counted_messages(clips, speech)]


def exchanges(
    clips: Iterable[tuple[Mapping[str, Any], Segment]], speech: bool = True
) -> list[tuple[list[Message], int]]:
    """The messages of ``to_messages`` cut behind every reply: where a chat that is too long may be cut.

    Returns:
        messages that end with the assistant's, and how many of the clips they take up. What is only written goes with
        the exchange behind it, at the end with the one before: each has a clip, unless the whole chat has none.
    """
    found: list[tuple[list[Message], int]] = []
    begun: list[Message] = []
    num_clips = 0
    for message, sounds in _counted_messages(clips, speech):
        begun.append(message)
        num_clips += sounds
        if message["role"] == "assistant" and num_clips:
            found.append((begun, num_clips))
            begun, num_clips = [], 0
    if found and begun:
        found[-1][0].extend(begun)
    return found or [(begun, 0)] * bool(begun)


def _counted_messages(
    clips: Iterable[tuple[Mapping[str, Any], Segment]], speech: bool
) -> list[tuple[Message, int]]:
    """See ``to_messages``; each message with the number of its sounds, also of those that are not asked for."""
    messages: list[Message] = []
    sounds: list[int] = []
    content: list[Segment] = []
    for role, parts, language in _whole_turns(clips):
        if not messages or messages[-1]["role"] != role:
            content = []
            messages.append({"role": role, "content": content})
            sounds.append(0)
        sounds[-1] += sum(spoken is not None for _, spoken in parts)
        for text, spoken in parts:
            if spoken is None or role == "assistant":
                content.append(_spaced(text, content, language))
            if spoken is not None and (speech or role != "assistant"):
                content.append(spoken)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return list(zip(messages, sounds[: len(messages)], strict=True))


def chat_facts(text: str, where: str) -> dict[str, int | str]:
    """Facts of a clip from their json, as manifests keep them."""
    try:
        found = json.loads(text)
        good = isinstance(found, dict) and {*FACTS} - {*OPTIONAL} <= {*found} <= {*FACTS}
        good = good and all(isinstance(value, FACTS[name]) for name, value in found.items())
        good = good and found["role"] in ROLES and found["turn"] >= 0 and found["turn_parts"] > 0
        for name in OPTIONAL:
            good = good and all(
                role in ROLES and isinstance(turn, int) for turn, role, _ in _written(found, name)
            )
    except (ValueError, TypeError):
        good = False
    if not good:
        raise UserError(f"{where}: chat is {text[:80]!r}, expected json with {', '.join(FACTS)}")
    return dict(found)


def count_chats(clips: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Chats among clips, given by their facts: ``whole``, ``cut`` before their end, ``without a whole reply``."""
    chats: dict[str, list[Mapping[str, Any]]] = {}
    for facts in clips:
        chats.setdefault(facts["passage"], []).append(facts)
    counts: Counter[str] = Counter()
    for parts in chats.values():
        parts.sort(key=lambda facts: facts["place"])
        turns = _whole_turns((facts, "a sound") for facts in parts)
        replied = any(role == "assistant" for role, _, _ in turns)
        whole = len(turns) == parts[0]["turns"]
        counts["without a whole reply" if not replied else "whole" if whole else "cut"] += 1
    return dict(counts)


class _Turn(NamedTuple):
    """A message: who says it, its parts (a text, and its sound if it has one), and in which language."""

    role: Role
    parts: list[tuple[str, Segment | None]]
    language: str


def _whole_turns(clips: Iterable[tuple[Mapping[str, Any], Segment]]) -> list[_Turn]:
    """The messages of a chat, up to one that lacks a part."""
    turns: dict[int, _Turn] = {}
    wanted: dict[int, int] = {}
    for place, (facts, sound) in enumerate(clips):
        if facts["place"] != place:
            break  # a sound is lost, and with it perhaps what is written before it
        wanted[facts["turn"]] = facts["turn_parts"]
        said = (facts["turn"], facts["role"], facts["text"], sound)
        before, after = ([(*part, None) for part in _written(facts, name)] for name in OPTIONAL)
        for turn, role, text, spoken in (*before, said, *after):
            turns.setdefault(turn, _Turn(role, [], facts["language"])).parts.append((text, spoken))
    whole: list[_Turn] = []
    while (turn := len(whole)) in turns and len(turns[turn].parts) == wanted.get(
        turn, len(turns[turn].parts)
    ):
        whole.append(turns[turn])
    return whole


def _written(facts: Mapping[str, Any], name: str) -> list[Written]:
    return [(turn, role, text) for turn, role, text in json.loads(facts.get(name) or "[]")]


def _spaced(text: str, content: Sequence[Segment], language: str) -> str:
    """With the space that parts it from what was said before in the same message."""
    parted = not content or language in UNSPACED_LANGUAGES or text[:1].isspace()
    return text if parted else f" {text}"
