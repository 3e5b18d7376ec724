"""How well a model does what it was taught to do: read aloud, repeat, go on, name the language.

Its speech is heard by an independent recogniser. A reply is right when what is heard, or written, differs from what
was to be said in at most ``MOST_ERRORS`` of its characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omniaudio.data.prompts import LANGUAGE_NAMES
from omniaudio.dialogue.evaluation import Clip, Track, looped
from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.dialogue.pairs import HEARD_SEC, error_rate
from omniaudio.dialogue.replies import SpokenReply
from omniaudio.frontend.text import normalise_text
from omniaudio.metrics.asr_judge import NO_JUDGE, AsrJudge
from omniaudio.metrics.cer import character_error_rate, word_error_rate
from omniaudio.metrics.records import Row
from omniaudio.sequence.chat import Message

SECTION = "What it says when asked"
MOST_ERRORS = 0.3
"""Share of wrong characters with which a reply still counts as right."""
RIGHT = {
    "read aloud": "right when it reads aloud",
    "repeat": "right when asked to repeat",
    "continue": "says what it writes when asked to go on",
}
"""Request -> the row of its replies."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Replies to one request, a clip each.

    Attributes:
        request: in words.
        expected: what each reply should have said.
        replies, heard: what it said, and what the judge understood; empty without speech.
    """

    request: str
    expected: list[str]
    replies: list[SpokenReply]
    heard: list[str]


def asked_rows(
    model: SpokenLanguageModel,
    clips: Sequence[Clip],
    judge: AsrJudge | None,
    track: Track,
    batch_size: int = 8,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows of all requests, and every reply in words.

    Args:
        clips: recordings with their texts. The text is read aloud; the recording is repeated, continued, and named.
        judge: hears the speech; without one nothing is said, and the rows tell so.
        batch_size: replies that are made together; the seed of each is its place among the clips.
    """
    starts = range(0, len(clips), batch_size)
    named: list[str] = []
    spoken: dict[str, list[SpokenReply]] = {name: [] for name in RIGHT if judge}
    for start in track(starts, "replies"):
        part = clips[start : start + batch_size]
        seeds = list(range(start, start + len(part)))
        asked_in_text = model.replies(_questions(model, part, "language"), speak=False, seeds=seeds)
        named += [reply["text"] for reply in asked_in_text]
        for name, replies in spoken.items():
            if name == "read aloud":
                replies += model.speak_all([clip.text for clip in part], seeds)
            else:
                replies += model.replies(_questions(model, part, name), seeds=seeds)
    rows = [_named_row(clips, named)]
    if judge is None:
        note = "asr_judge=NAME gives one"
        rows += [
            Row(section=SECTION, name=name, value=None, text=NO_JUDGE, note=note) for name in RIGHT.values()
        ]
        return rows, []
    told: list[dict[str, Any]] = []
    for name, replies in spoken.items():
        own = name == "continue"  # nobody knows what should follow
        expected = [reply["text"] if own else clip.text for clip, reply in zip(clips, replies, strict=True)]
        asked = Asked(request=name, expected=expected, replies=replies, heard=_heard(judge, clips, replies))
        rows += _spoken_rows(asked, clips, judge.name)
        told += [
            {"asked": name, "key": clip.key, "expected": text, "wrote": reply["text"], "heard": words}
            for clip, text, reply, words in zip(clips, expected, replies, asked.heard, strict=True)
        ]
    return rows, told


def right(expected: str, said: str, language: str) -> bool:
    """Whether ``said`` is what was to be said; where nothing was to be said, nothing is right."""
    if not normalise_text(expected, language):
        return False
    return error_rate(expected, said, language, "character") <= MOST_ERRORS


def _questions(model: SpokenLanguageModel, clips: Sequence[Clip], task: str) -> list[list[Message]]:
    return [[model.question(clip.wav_N, clip.sample_rate_hz, task, clip.language)] for clip in clips]


def _heard(judge: AsrJudge, clips: Sequence[Clip], replies: Sequence[SpokenReply]) -> list[str]:
    """What the judge understands of each reply, of the seconds that it can hear."""
    heard = [""] * len(replies)
    spoken = [(i, wav_N) for i, reply in enumerate(replies) if (wav_N := reply["wav"]) is not None]
    for start in range(0, len(spoken), judge.batch_size):
        numbers, wavs = zip(*spoken[start : start + judge.batch_size], strict=True)
        rate_hz = replies[numbers[0]]["sample_rate_hz"]
        cut = [wav_N[: int(HEARD_SEC * rate_hz)] for wav_N in wavs]
        texts = judge.transcribe(cut, rate_hz, [clips[i].language for i in numbers])
        for i, text in zip(numbers, texts, strict=True):
            heard[i] = text
    return heard


def _named_row(clips: Sequence[Clip], named: Sequence[str]) -> Row:
    names = [LANGUAGE_NAMES.get(clip.language, clip.language) for clip in clips]
    found = [name.casefold() == said.strip().casefold() for name, said in zip(names, named, strict=True)]
    commonest = max(map(names.count, names))
    note = f"{len(clips)} clips; the commonest is {commonest / len(clips):.0%} of them"
    return _share_row("names the language", found, note)


def _share_row(name: str, found: Sequence[bool], note: str) -> Row:
    share = sum(found) / len(found)
    return Row(section=SECTION, name=name, value=share, text=f"{sum(found)} of {len(found)}", note=note)


def _spoken_rows(asked: Asked, clips: Sequence[Clip], judge: str) -> list[Row]:
    """Shares of right replies by what is written and by what is heard; of a text read aloud the error rates too."""
    languages = [clip.language for clip in clips]
    found = [right(*words) for words in zip(asked.expected, asked.heard, languages, strict=True)]
    spoke = sum(reply["wav"] is not None for reply in asked.replies)
    note = f"heard by {judge} with at most {MOST_ERRORS:.0%} of characters wrong; {spoke} have speech"
    rows = [_share_row(RIGHT[asked.request], found, note)]
    if asked.request == "repeat":
        written = [reply["text"] for reply in asked.replies]
        good = [right(*words) for words in zip(asked.expected, written, languages, strict=True)]
        rows.insert(0, _share_row("writes the right words when asked to repeat", good, "whatever it says"))
    if asked.request == "read aloud":
        loops = len(looped(clips, asked.heard))
        for unit, rate in (("CER", character_error_rate), ("WER", word_error_rate)):
            value = rate(asked.expected, asked.heard, languages).rate
            note = f"{judge} on {len(clips)} texts" + (f"; it loops on {loops}" if loops else "")
            rows.append(
                Row(
                    section=SECTION,
                    name=f"{unit}, reading aloud",
                    value=value,
                    text=f"{value:.1%}",
                    note=note,
                )
            )
    return rows
