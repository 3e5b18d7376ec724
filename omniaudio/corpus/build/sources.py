"""Where a build begins: texts, recordings, or a corpus that has both."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from omniaudio.corpus.build.segment import Segment
from omniaudio.corpus.checks import audio_reason
from omniaudio.corpus.folder import not_read, recordings_in
from omniaudio.corpus.items import Corpus, LeftOut, short_key
from omniaudio.corpus.texts import TextSource
from omniaudio.corpus.written_chats import ChatSource
from omniaudio.data.chats import Written
from omniaudio.errors import UserError
from omniaudio.frontend.audio import decode_mono_at


class Source(Protocol):
    """What there is to build from."""

    def sources(self, raw: Path) -> Iterator[Mapping[str, Any]]:
        """Everything, in a fixed order, as json; ``raw`` is the folder for what is fetched."""
        ...

    def __call__(self, source: Mapping[str, Any]) -> list[Segment]:
        """The segments to begin with; what cannot be opened has a fault."""
        ...

    def attribution(self) -> str: ...


class Texts:
    """Every document of a text source is a passage.

    Args:
        texts: the documents.
        language: ISO 639-1.
        max_passages: take so many; null takes all.
    """

    def __init__(self, texts: TextSource, language: str, max_passages: int | None = None) -> None:
        self.texts, self.language, self.max_passages = texts, language, max_passages

    def sources(self, raw: Path) -> Iterator[Mapping[str, Any]]:
        for number, text in enumerate(self.texts.texts()[: self.max_passages]):
            yield {"key": f"text-{number:07d}", "text": text}

    def __call__(self, source: Mapping[str, Any]) -> list[Segment]:
        key = source["key"]
        return [Segment(key=f"{key}/0000", passage=key, text=source["text"], language=self.language)]

    def attribution(self) -> str:
        return self.texts.attribution()


class Chats:
    """Every written chat is a passage; what some roles say is to be spoken.

    Args:
        chats: the chats.
        language: ISO 639-1.
        spoken: of user and assistant, those that are to get a voice.
        max_chats: take so many; null takes all.
    """

    def __init__(
        self, chats: ChatSource, language: str, spoken: Sequence[str], max_chats: int | None = None
    ) -> None:
        if not spoken or set(spoken) - {"user", "assistant"}:
            raise UserError(f"pipeline.source.spoken: {list(spoken)} must be user, assistant, or both")
        self.chats, self.language, self.spoken, self.max_chats = chats, language, tuple(spoken), max_chats

    def sources(self, raw: Path) -> Iterator[Mapping[str, Any]]:
        for number, chat in enumerate(self.chats.chats()[: self.max_chats]):
            told = {"left_out": chat.reason} if isinstance(chat, LeftOut) else {"messages": chat}
            yield {"key": f"chat-{number:07d}", **told}

    def __call__(self, source: Mapping[str, Any]) -> list[Segment]:
        key = source["key"]
        if "left_out" in source:
            return [Segment(key=f"{key}/0000", passage=key).refused(source["left_out"])]
        # an empty message that is only written says nothing; one to be spoken is a mistake that the steps refuse
        messages = [(role, text) for role, text in source["messages"] if text or role in self.spoken]
        found: list[Segment] = []
        written: tuple[Written, ...] = ()
        for turn, (role, text) in enumerate(messages):
            if role not in self.spoken:
                written = (*written, (turn, role, text))
                continue
            segment = Segment(
                key=f"{key}/{len(found):04d}", passage=key, place=len(found), language=self.language, text=text,
                role=role, turn=turn, turns=len(messages), before=written,
            )  # fmt: skip
            found.append(segment)
            written = ()
        if not found:
            return [Segment(key=f"{key}/0000", passage=key).refused("chat without a message to speak")]
        return [*found[:-1], replace(found[-1], after=written)]

    def attribution(self) -> str:
        return self.chats.attribution()


class Recordings:
    """Every recording below a folder is a source.

    Args:
        folder: of recordings, of any length.
        language: ISO 639-1 of what is spoken.
        licence: a line for ATTRIBUTION.
    """

    def __init__(self, folder: str, language: str, licence: str = "Licence not stated.") -> None:
        self.folder, self.language, self.licence = Path(folder).resolve(), language, licence

    def sources(self, raw: Path) -> Iterator[Mapping[str, Any]]:
        if not self.folder.is_dir():
            raise UserError(f"pipeline.source.folder {self.folder}: no such folder")
        for path in recordings_in(self.folder)[0]:
            name, stat = path.relative_to(self.folder).as_posix(), path.stat()
            yield {"key": short_key(name), "path": str(path), "size_time": [stat.st_size, stat.st_mtime_ns]}

    def ignored(self) -> dict[str, int]:
        """How many files of the folder are no sources, by reason."""
        return dict(sorted(Counter(map(not_read, recordings_in(self.folder)[1])).items()))

    def __call__(self, source: Mapping[str, Any]) -> list[Segment]:
        key = source["key"]
        return [opened(Segment(key=f"{key}/0000", passage=key, language=self.language, speaker=key), source)]

    def attribution(self) -> str:
        return f"{self.folder.name}: {self.licence}"


class Dialogues:
    """The recordings of a corpus with their texts; those whose keys begin alike are a passage, in the order that the
    corpus gives, else in that of their keys.

    Args:
        corpus: fetched and listed as ``omniaudio prepare`` does.
        passage: a pattern; what it matches at the beginning of a key names the passage. Other keys are refused.
        turn: a pattern; recordings whose keys it matches alike are one message of a chat. Null makes no chats.
        roles: speaker -> user or assistant; ``*`` stands for all others.
    """

    def __init__(
        self, corpus: Corpus, passage: str, turn: str | None = None, roles: Mapping[str, str] | None = None
    ) -> None:
        self.corpus, self.roles = corpus, dict(roles or {})
        self.pattern, self.turn = _pattern("passage", passage), _pattern("turn", turn) if turn else None
        if wrong := sorted(set(self.roles.values()) - {"user", "assistant"}):
            raise UserError(f"pipeline.source.roles: {wrong[0]!r} is no role; user or assistant")

    def sources(self, raw: Path) -> Iterator[Mapping[str, Any]]:
        self.corpus.fetch(raw)
        passages: dict[str, list[dict[str, Any]]] = {}
        items = self.corpus.inventory(raw.resolve()).items
        for item in sorted(items, key=lambda item: (item.order, item.key)):
            found = self.pattern.match(item.key)
            lines = passages.setdefault(found[0] if found else "", [])
            place = {"path": str(item.path), "start_sec": item.start_sec, "duration_sec": item.duration_sec}
            fact = {
                "text": item.text,
                "language": item.language,
                "speaker": item.speaker,
                "band_hz": item.band_hz,
            }
            more = {
                "response": " ".join(item.response), "continuation": item.continuation,
                "translation": item.translation,
            }  # fmt: skip
            fault = item.fault or ("" if found else "in no passage")
            turn = self.turn.match(item.key) if self.turn else None
            told = {"channel": item.channel, "fault": fault, "turn": turn[0] if turn else item.key}
            lines.append({**place, **fact, **told, "more": more})
        for name, lines in sorted(passages.items()):
            yield {"key": f"{self.corpus.name}-{short_key(name or 'rest')}", "lines": lines}

    def __call__(self, source: Mapping[str, Any]) -> list[Segment]:
        key, found = source["key"], []
        names = list(dict.fromkeys(line["turn"] for line in source["lines"]))
        for place, line in enumerate(source["lines"]):
            role = self.roles.get(line["speaker"], self.roles.get("*", "")) if self.turn else ""
            segment = Segment(
                key=f"{key}/{place:04d}",
                passage=key,
                place=place,
                text=line["text"] or "",
                language=line["language"],
                speaker=line["speaker"],
                facts={name: text for name, text in line["more"].items() if text},
                role=role,
                turn=names.index(line["turn"]),
                turns=len(names),
            )
            fault = line["fault"] or ("" if line["text"] else "missing transcript")
            found.append(segment.refused(fault) if fault else opened(segment, line))
        return found

    def attribution(self) -> str:
        return self.corpus.attribution()


def _pattern(name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"pipeline.source.{name} {text!r}: not a pattern ({error})") from error


def opened(segment: Segment, place: Mapping[str, Any], rate_hz: int = 16_000) -> Segment:
    """The segment with its sound at ``rate_hz``, or with the reason why it has none."""
    if not Path(
        place["path"]
    ).is_file():  # not a fault of the recording: another machine, or an unmounted disk
        raise UserError(f"{place['path']}: is not there any more; the same command goes on when it is")
    start_sec = float(place.get("start_sec", 0.0))
    try:
        wav_N, found_hz = decode_mono_at(
            place["path"], rate_hz, start_sec, place.get("duration_sec"), place.get("channel")
        )
    except UserError as error:
        return segment.refused(audio_reason(error))
    if not np.isfinite(wav_N).all():
        return segment.refused("audio not finite")
    band_hz = float(place.get("band_hz") or (found_hz / 2 if found_hz < rate_hz else 0))
    return replace(segment, wav_N=wav_N, rate_hz=rate_hz, start_sec=start_sec, band_hz=band_hz)
