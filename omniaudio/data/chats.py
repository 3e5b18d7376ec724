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
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from omniaudio.data.index import text_number
from omniaudio.data.planning import CHUNK
from omniaudio.errors import UserError
from omniaudio.frontend.text import UNSPACED_LANGUAGES
from omniaudio.sequence.chat import Message, Role, Segment

if TYPE_CHECKING:
    from omniaudio.data.shards import ShardReader

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
HELD_OUT = "held_out"
"""Fact ``only`` of a clip that stands in a training split and is learned by no kind of document: its text or passage
is held out in another folder that was joined to its own (omniaudio join)."""

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


def count_held_out(reader: ShardReader, items: range) -> dict[str, int]:
    """What is held out of some samples of a split.

    Returns:
        ``clips`` that are ``HELD_OUT``; and, of the chats that have such clips, those that are ``chats_cut`` (a reply
        is left) and those that are ``chats_lost`` by it: a chat ends before its first clip that is held out.
    """
    only, role, passage = (
        reader.column(name)[items.start : items.stop] for name in ("only", "role", "passage")
    )
    starts = range(0, len(items), CHUNK)  # masks of a piece at a time
    places = [start + np.flatnonzero(only[start : start + CHUNK] == text_number(HELD_OUT)) for start in starts]
    counts = {"clips": sum(map(len, places)), "chats_cut": 0, "chats_lost": 0}
    end = 0
    for first in (int(place) for part in places for place in part[role[part] != 0]):
        if first < end or "fault" in reader.entries[items.start + first].facts:
            continue  # counted with its chat; or refused by a build: no part of a chat
        begin = end = first
        while begin and passage[begin - 1] == passage[first]:
            begin -= 1
        while end < len(only) and passage[end] == passage[first] and only[end] in (0, only[first]):
            end += 1
        clips = [(reader.entries[items.start + i].facts, "a sound") for i in range(begin, end)]
        had, left = len(to_messages(clips)), len(to_messages(clips[: first - begin]))
        counts["chats_cut"] += 0 < left < had
        counts["chats_lost"] += 0 == left < had
    return counts


def held_out_line(counts: Mapping[str, int]) -> str:
    """What ``count_held_out`` found, in words; empty for nothing."""
    if not counts["clips"]:
        return ""
    chats = f"; {counts['chats_cut']:,} chats are cut and {counts['chats_lost']:,} lost by it"
    told = chats if counts["chats_cut"] or counts["chats_lost"] else ""
    return f"{counts['clips']:,} clips are not learned: their text or passage is in a held-out split{told}"


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
