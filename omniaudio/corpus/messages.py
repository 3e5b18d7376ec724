"""Chats with sound, as messages of the form that OpenAI's interface has made common.

A line is a chat::

    {"id": "...", "language": "en", "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "<base64>", "format": "wav"}},
                                     {"type": "text", "text": "Answer in one word."}]},
        {"role": "assistant", "content": null, "audio": {"data": "<base64>", "format": "wav", "transcript": "Yes."}}]}

Files may stand in the place of base64: ``{"type": "audio", "audio": PATH}``, ``{"type": "audio_url", "audio_url":
{"url": PATH}}``, and ``"audio": {"path": PATH}`` of a message; relative ones begin at the folder of the list. What was
said (``transcript``, or ``text`` of a part that is a sound) may miss in what users say, never in replies. Empty texts,
and messages without anything else, are taken out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omniaudio.corpus.items import MAX_KEY, Inventory, LeftOut, RawItem, clean_key
from omniaudio.corpus.json_manifests import Fields, LineError, Listed, language_code
from omniaudio.data.chats import ROLES, to_clips
from omniaudio.files import write_whole

SOUNDS = ("input_audio", "audio", "audio_url")
SAME_ROLE = {"developer": "system"}


class Sound(NamedTuple):
    """A sound of a message: where it is, and its words if they are known."""

    path: Path
    words: str | None


class ChatMessages(Listed):
    """Chats of a file with json lines. What ``Listed`` says of the arguments holds."""

    def inventory(self, folder: Path) -> Inventory:
        self._decoded = folder / "audio"  # sounds that stand in the list itself
        self._names: set[str] = set()
        return super().inventory(folder)

    def read(self, line: dict[str, Any], where: str, home: Path, split: str) -> Iterator[RawItem | LeftOut]:
        field = Fields(line, where)
        number = where.rpartition(":")[2]
        name = clean_key(str(line.get("id") or f"{split or self.name}-{number}"), MAX_KEY - len("/0000"))
        language = language_code(field("language", str, None), self.language)
        if name in self._names:
            yield LeftOut(name=name, reason="duplicate id")
            return
        messages, speakers = [], []
        for place, message in enumerate(field("messages", list)):
            found = Fields(message, f"{where}: message {place}")
            role = SAME_ROLE.get(found("role", str), found("role", str))
            if role not in ROLES or (role == "system" and place):
                expected = "system (the first only), user, assistant"
                raise LineError(found.where, f"the role is {role!r}, expected {expected}", "unknown role")
            if parts := [part for part in self._parts(message, role, found.where, home) if part != ""]:
                messages.append((role, parts))
                speakers.append(str(message.get("name") or message["role"]))
        self._names.add(name)
        clips = to_clips(messages, name)
        if not clips:
            yield LeftOut(name=name, reason="chat without a sound")
        for sound, facts in clips:
            yield RawItem(
                key=f"{name}/{facts['place']:04d}",
                path=sound.path,
                text=sound.words or (None if facts["role"] == "assistant" else ""),
                language=language,
                speaker=speakers[int(facts["turn"])],
                split=split,
                chat=json.dumps(facts, ensure_ascii=False),
            )

    def _parts(self, message: Mapping[str, Any], role: str, where: str, home: Path) -> Iterator[str | Sound]:
        """Texts and sounds of a message, in order."""
        content, audio = Fields(message, where)("content", str | list, None), message.get("audio")
        if audio is not None:
            written = content if isinstance(content, str) and role == "assistant" else None
            words = Fields(audio, f"{where}: audio")("transcript", str, written)
            yield self._sound(audio, words, f"{where}: audio", home)
            content = None if written is not None else content
        if isinstance(content, str):
            yield content
            return
        for number, part in enumerate(content or []):
            here = f"{where}, part {number}"
            field = Fields(part, here)
            kind = field("type", str)
            if kind in ("text", "input_text", "output_text"):
                yield field("text", str)
            elif kind in SOUNDS:
                words = field("transcript", str, field("text", str, None))
                yield self._sound(part.get(kind, part), words, here, home)
            else:
                what = f"type {kind!r}, expected text, {', '.join(SOUNDS)}"
                raise LineError(here, what, "part of an unknown type")
        if not content and audio is None:
            raise LineError(where, "has neither content nor audio")

    def _sound(self, place: Any, words: str | None, where: str, home: Path) -> Sound:
        """A sound by its path, its address, or its content."""
        place = {"path": place} if isinstance(place, str) else place
        field = Fields(place, where)
        given = field("path", str, None) or field("url", str, None)
        if given is not None and not given.startswith("data:"):
            if "://" in given and not given.startswith("file://"):
                what = f"{given[:80]} is not on this machine; fetch it, and name the file"
                raise LineError(where, what, "sound that is not on this machine")
            return Sound((home / given.removeprefix("file://")).resolve(), words)
        ending = field("format", str, "wav")
        if given is not None:
            head, _, data = given.partition(",")
            ending = head.removeprefix("data:").partition(";")[0].rpartition("/")[2]
        else:
            data = field("data", str)
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise LineError(where, f"data is not base64 ({error})", "data is not base64") from error
        path = self._decoded / f"{hashlib.sha256(content).hexdigest()[:32]}.{clean_key(ending)}"
        if not path.is_file():
            write_whole(path, content)
        return Sound(path, words)
