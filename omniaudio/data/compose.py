"""Code shards and texts -> documents of every kind, put together while training (arXiv:2502.17239, table 4).

The codes are extracted once; which of them become recognition, speech synthesis, interleaved data or chat is
decided here, so that a mixture changes without touching a shard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from omniaudio.data.chats import exchanges
from omniaudio.data.clip_mixture import CorporaOfClips
from omniaudio.data.index import text_number
from omniaudio.data.planning import CHUNK, ShuffledWindows
from omniaudio.data.prompts import ANSWERS, LANGUAGE_NAMES, prompt_for, to_read, with_voice
from omniaudio.data.shards import ShardReader, load_npy
from omniaudio.errors import UserError
from omniaudio.frontend.text import UNSPACED_LANGUAGES
from omniaudio.sequence.chat import ChatLayout, Message, Segment
from omniaudio.sequence.spans import Document, DocumentBuilder, DocumentLayouts, LengthBuilder
from omniaudio.sequence.vocab import TokenSpace

Codes = np.ndarray
Group = tuple[int, ...]

JOINED = ("intlv", "itts", "sft_repeat")
"""Kinds whose documents may hold several clips: of one voice, or of one passage."""
CHATS = ("sft_chat", "sft_chat_text")
"""Kinds whose documents are the chats of the corpus: replies in text and speech, and in text alone."""
KINDS = (
    *CHATS,
    *ANSWERS,
    "tts",
    "audio",
    "text",
    "intlv",
    "itts",
    "sft_transcribe",
    "sft_repeat",
    "sft_read",
    "sft_continue",
    "sft_language",
)
SPEAKING = ("sft_repeat", "sft_read", "sft_continue")
"""Kinds whose documents are chats made of clips, with a spoken reply."""

MAX_KNOWN = 1 << 16  # texts whose ids are remembered
CLAUSE_ENDS = ".,;:!?…—。，；：！？"


class Texts(Protocol):
    """Documents of the kind ``text``; a list is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int, /) -> str: ...


@dataclass(frozen=True)
class _Form:
    """Documents with the codes of their clips, or their lengths from the numbers of frames."""

    layouts: DocumentLayouts
    chat: ChatLayout
    codes: Callable[[int], Any]


class DocumentComposer:
    """Makes documents; knows their lengths without reading a shard.

    Args:
        reader: code shards, facts ``text``, ``language``, ``speaker``, ``num_frames``.
        encode: text -> ids.
        space: token ids.
        texts: documents of the kind ``text``.
        max_clips: clips that an interleaved document joins at most.
        max_joined_frames: code frames that it joins at most; 375 is half a minute at 12.5 Hz.
        loss_on_intlv_audio: see DocumentLayouts.
        longest: LLM positions of a document; a longer chat is cut behind replies. None cuts none.
        voices: fact ``speaker`` -> name. Chats, of the corpus or made of clips, whose spoken replies are all of one of
            these voices begin with a system message that names it (``with_voice``), each piece of one that is cut too.
    """

    def __init__(
        self,
        reader: ShardReader,
        encode: Callable[[str], list[int]],
        space: TokenSpace,
        texts: Texts = (),
        max_clips: int = 6,
        max_joined_frames: int = 375,
        loss_on_intlv_audio: bool = False,
        longest: int | None = None,
        voices: Mapping[str, str] | None = None,
    ) -> None:
        self.longest, self.voices = longest, voices or {}
        self.reader, self.texts = reader, texts
        self.space = space
        self.max_clips, self.max_joined_frames = max_clips, max_joined_frames
        self._encode_new = encode
        self._known_ids: dict[str, list[int]] = {}
        self._orders: dict[str, ShuffledWindows] = {}
        self._whole, self._counted = (
            _Form(
                DocumentLayouts(space, loss_on_intlv_audio, builder),
                ChatLayout(space, self.encode, builder),
                codes,
            )
            for builder, codes in ((DocumentBuilder, self._codes), (LengthBuilder, self._frames))
        )

    # -- what a plan asks

    def num_windows(self, kind: str) -> int:
        """Windows of an epoch of a kind."""
        begin, end = self._span(kind)
        return ShuffledWindows(end - begin, 0).num_windows

    def groups(self, kind: str, window: int, seed: int) -> list[Group]:
        """One window of a kind in random order: every clip (or text) is in exactly one group of an epoch.

        ``sft_continue`` names a second clip of the same voice, which follows when the first cannot be cut.
        """
        rng = np.random.default_rng([seed, window])
        items = self._window(kind, window, seed)
        kind, _, corpus = kind.partition("@")
        if kind == "text":
            return [(i,) for i in items.tolist()]
        items = items[self._fits(kind, corpus, items)]
        if kind in CHATS:
            firsts = items[np.asarray(self.reader.column("place")[items]) == 0].tolist()
            return [group for first in firsts for group, _ in self._pieces(kind, first)]
        if kind in JOINED:
            groups = [group for voice in self._voices(items) for group in self._joined(kind, voice, rng)]
        elif kind == "sft_continue":
            groups = [pair for voice in self._voices(items) for pair in self._chained(voice)]
        else:
            return [(i,) for i in items.tolist()]
        return [groups[i] for i in rng.permutation(len(groups))]

    def occurs(self, kind: str, corpus: str) -> bool:
        """Whether a corpus has clips for a kind."""
        begin, end = self._span(f"{kind}@{corpus}")
        chunks = (np.arange(start, min(start + CHUNK, end)) for start in range(begin, end, CHUNK))
        return any(self._fits(kind, corpus, items).any() for items in chunks)

    def check_voices(self, streams: Iterable[str]) -> None:
        """Every voice that has a name replies in some chat of these kinds, or kinds of corpora.

        Raises:
            UserError: otherwise, with the labels in question.
        """
        missing = {text_number(label): label for label in self.voices}
        role, speaker = (self.reader.column(name) for name in ("role", "speaker"))
        for kind, _, corpus in (stream.partition("@") for stream in streams):
            if kind not in ("sft_chat", *SPEAKING):
                continue
            begin, end = self._span(f"{kind}@{corpus}")
            for start in range(begin, end if missing else begin, CHUNK):
                items = np.arange(start, min(start + CHUNK, end))
                items = items[self._fits(kind, corpus, items)]
                if kind in CHATS:
                    items = items[np.asarray(role[items]) == text_number("assistant")]
                replying = np.asarray(speaker[items])
                missing = {number: label for number, label in missing.items() if number not in replying}
        if missing:
            raise UserError(
                f"mixture.voices: no reply is spoken by {', '.join(missing.values())}; give labels that clips "
                f"with a text (in chats the assistant's) have as `speaker`, and a weight to one of sft_chat, {', '.join(SPEAKING)}"
            )

    def num_tokens(self, kind: str, item_ids: Sequence[int], seed: int) -> int:
        """LLM positions of ``compose`` with the same arguments, known from facts alone."""
        return len(self._compose(kind, item_ids, seed, self._counted))

    def compose(self, kind: str, item_ids: Sequence[int], seed: int) -> Document:
        """The document; all random choices follow from ``seed``."""
        document: Document = self._compose(kind, item_ids, seed, self._whole)
        return document

    def messages(self, kind: str, item_ids: Sequence[int], seed: int) -> list[Message]:
        """The chat that a document of a chat's kind is made of, with codes; the last message is the reply to learn."""
        return self._chat_of(kind, item_ids, np.random.default_rng(seed), self._codes)[1]

    # -- making

    def _compose(self, kind: str, item_ids: Sequence[int], seed: int, form: _Form) -> Any:
        rng, kind = np.random.default_rng(seed), kind.partition("@")[0]
        layouts, codes = form.layouts, form.codes
        if kind == "text":
            return layouts.text(f"text/{item_ids[0]}", self.encode(self.texts[item_ids[0]]))
        if kind.startswith("sft_"):
            name, messages = self._chat_of(kind, item_ids, rng, codes)
            return form.chat.document(messages, kind, name)
        key = "+".join(self.reader.entries[i].key for i in item_ids)
        facts, audio = self.reader.entries[item_ids[0]].facts, codes(item_ids[0])
        if kind in ANSWERS:
            prompt = self.encode(prompt_for(kind, facts["language"], rng))
            return layouts.answer(kind, key, prompt, audio, self.encode(facts[ANSWERS[kind]]))
        if kind == "tts":
            return layouts.tts(key, self.encode(facts["text"]), audio)
        if kind == "audio":
            return layouts.audio(key, audio)
        segments = [(self._segment_ids(i, place), codes(i)) for place, i in enumerate(item_ids)]
        prompt = self.encode(prompt_for("interleaved", facts["language"]))
        if kind == "itts":
            return layouts.itts(key, prompt, segments)
        audio_first = len(segments) > 1 and bool(rng.integers(2))
        return layouts.intlv(key, prompt, segments, audio_first)

    def _chat_of(
        self, kind: str, item_ids: Sequence[int], rng: np.random.Generator, codes: Callable[[int], Any]
    ) -> tuple[str, list[Message]]:
        """Name and messages of a chat, found in the corpus or made of clips."""
        facts = self.reader.entries[item_ids[0]].facts
        if kind in CHATS:
            pieces = self._pieces(kind, item_ids[0] - facts["place"])
            (said,) = (messages for group, messages in pieces if group[0] == item_ids[0])
            name = facts["passage"] if not facts["place"] else f"{facts['passage']}+{facts['place']}"
            return name, _sounding(said, codes)
        heard, reply, speaking = self._task(kind, item_ids, rng, codes)
        if kind == "sft_read":
            question = to_read(facts["text"], facts["language"], rng)
        else:
            asked = prompt_for(kind, "en" if kind == "sft_language" else facts["language"], rng)
            question = {"role": "user", "content": [*heard, asked]}
        messages: list[Message] = [question, {"role": "assistant", "content": reply}]
        voice = self._voice(speaking)
        name = "+".join(self.reader.entries[i].key for i in item_ids)
        return name, with_voice(messages, voice) if voice else messages

    def _task(
        self, kind: str, item_ids: Sequence[int], rng: np.random.Generator, codes: Callable[[int], Any]
    ) -> tuple[list[Segment], list[Segment], Sequence[int]]:
        """What the user lets hear, the reply, and the clips that speak it, of a chat task."""
        facts, audio = self.reader.entries[item_ids[0]].facts, codes(item_ids[0])
        if kind == "sft_transcribe":
            return [audio], [facts["text"]], ()
        if kind == "sft_language":
            return [audio], [LANGUAGE_NAMES.get(facts["language"], facts["language"])], ()
        if kind == "sft_read":
            return [], [facts["text"], audio], item_ids
        if kind == "sft_repeat":
            reply: list[Segment] = []
            for place, i in enumerate(item_ids):
                reply += [self._segment_text(i, place), codes(i)]
            return [codes(i) for i in item_ids], reply, item_ids
        cut = _split(facts, len(audio))
        if cut is not None:
            _, rest, frame = cut
            heard, spoken, by = audio[:frame], audio[frame:], item_ids[:1]
        else:
            by = item_ids[-1:]
            heard, rest, spoken = audio, self._segment_text(by[0], 0), codes(by[0])
        return ([heard], [rest, spoken], by) if rng.integers(2) else ([heard], [rest], ())

    def goes_on(self, kind: str, item_ids: Sequence[int]) -> bool:
        """Whether a document is a piece of a chat that another document begins."""
        return kind.partition("@")[0] in CHATS and bool(self.reader.entries[item_ids[0]].facts["place"])

    def _pieces(self, kind: str, first: int) -> list[tuple[Group, list[Message]]]:
        """A chat cut behind replies so that no piece is longer than ``longest``, if each of its exchanges is not: the
        clips of every piece, and its messages with numbers of clips for sounds.

        Behind the last reply that is whole there may be more clips; they count to the last piece.
        """
        chat, speech = self._chat(first), kind.partition("@")[0] == "sft_chat"
        clips: Iterator[tuple[Any, Any]] = ((self.reader.entries[i].facts, i) for i in chat)
        voice = self._voice(self._replies(chat)) if speech else None
        pieces: list[tuple[int, list[Message]]] = []  # first clip, messages
        length = begin = 0
        for messages, num_clips in exchanges(clips, speech):
            more = self._length(messages)
            # It began with (bos and) bos_sys, which stand once.
            more_here = more - 1 - len(self.space.beginning)
            if pieces and (self.longest is None or length + more_here <= self.longest):
                pieces[-1][1].extend(messages)
                length += more_here
            else:
                begun = with_voice(messages, voice) if voice else list(messages)
                pieces.append((chat[begin], begun))
                length = self._length(begun)
            begin += num_clips
        ends = [
            *(number for number, _ in pieces[1:]),
            chat[-1] + 1,
        ]  # without a whole reply there is no piece
        return [(tuple(range(i, end)), messages) for (i, messages), end in zip(pieces, ends, strict=False)]

    def _length(self, messages: Sequence[Message]) -> int:
        return len(self._counted.chat.document(_sounding(messages, self._frames), "sft_chat", ""))

    def _replies(self, chat: Group) -> list[int]:
        return [i for i in chat if self.reader.entries[i].facts["role"] == "assistant"]

    def _voice(self, clips: Iterable[int]) -> str | None:
        """The name of the voice that speaks all of these clips, if it has one."""
        names = {self.voices.get(self.reader.entries[i].facts.get("speaker", "")) for i in clips}
        return names.pop() if len(names) == 1 else None

    def encode(self, text: str) -> list[int]:
        """Text to ids, remembered."""
        if text not in self._known_ids:
            if len(self._known_ids) >= MAX_KNOWN:
                self._known_ids.clear()
            self._known_ids[text] = self._encode_new(text)
        return self._known_ids[text]

    def _segment_text(self, item: int, place: int) -> str:
        """A clip's text; after the first of a document with the space that parts it from the one before."""
        facts = self.reader.entries[item].facts
        spaced = place > 0 and facts["language"] not in UNSPACED_LANGUAGES
        return " " * spaced + str(facts["text"])

    def _segment_ids(self, item: int, place: int) -> list[int]:
        return self.encode(self._segment_text(item, place))

    def _codes(self, item: int) -> Codes:
        return load_npy(self.reader.member(item, "codes.npy"))

    def _frames(self, item: int) -> Sequence[int]:
        """As many as the clip has, in the place of its codes."""
        return range(int(self.reader.entries[item].facts["num_frames"]))

    # -- grouping

    def _fits(self, kind: str, corpus: str, items: np.ndarray) -> np.ndarray:
        """Which clips have what a kind needs, are not for another kind only, and are of a corpus if one is named."""
        needed = "num_frames" if kind == "audio" else "role" if kind in CHATS else ANSWERS.get(kind, "text")
        fits = np.asarray(self.reader.column(needed)[items]) != 0
        only = np.asarray(self.reader.column("only")[items])
        fits &= (only == 0) | (only == text_number(kind))
        if corpus:
            fits &= np.asarray(self.reader.column("corpus")[items]) == text_number(corpus)
        return fits

    def _span(self, kind: str) -> tuple[int, int]:
        """The first text, clip, or clip of its corpus, that a kind may have, and the one behind the last."""
        kind, _, corpus = kind.partition("@")
        if kind not in KINDS:
            raise UserError(f"mixture.weights: unknown kind {kind!r}; one of {', '.join(KINDS)}")
        if corpus:
            return self._spans.get(corpus, (0, 0))
        return 0, len(self.texts) if kind == "text" else len(self.reader)

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        return CorporaOfClips(self.reader).spans()

    def _window(self, kind: str, window: int, seed: int) -> np.ndarray:
        """Texts or clips among which are those of a window; the order of an epoch is drawn once."""
        begin, end = self._span(kind)
        if kind not in self._orders or self._orders[kind].seed != seed:
            self._orders[kind] = ShuffledWindows(end - begin, seed)
        return begin + self._orders[kind][window]

    def _chat(self, first: int) -> Group:
        """The clips of a chat, from its first on."""
        passage, role, only = (self.reader.column(name) for name in ("passage", "role", "only"))
        last = first + 1
        while last < len(self.reader) and passage[last] == passage[first] and role[last] and not only[last]:
            last += 1
        return tuple(range(first, last))

    def _voices(self, items: np.ndarray) -> list[list[int]]:
        """Clips that may stand in one document: a passage's that follow each other, in its order, whoever speaks;
        clips without a passage by language and speaker, in the order given."""
        passage = np.asarray(self.reader.column("passage")[items])
        free, bound = items[passage == 0], np.sort(items[passage != 0])
        names = np.stack([self.reader.column(name)[free] for name in ("language", "speaker")], axis=1)
        _, voice_of, counts = np.unique(names, axis=0, return_inverse=True, return_counts=True)
        free = free[np.argsort(voice_of.reshape(-1), kind="stable")]
        voices = np.split(free, np.cumsum(counts)[:-1])
        of_passage, place = (np.asarray(self.reader.column(name)[bound]) for name in ("passage", "place"))
        breaks = (of_passage[1:] != of_passage[:-1]) | (place[1:] != place[:-1] + 1)
        runs = np.split(bound, np.flatnonzero(breaks) + 1)
        return [voice.tolist() for voice in (*voices, *runs) if len(voice)]

    def _joined(self, kind: str, voice: Sequence[int], rng: np.random.Generator) -> list[Group]:
        """A voice's clips, cut into groups of random size."""
        fewest, most = (1, min(2, self.max_clips)) if kind == "sft_repeat" else (2, max(2, self.max_clips))
        groups: list[list[int]] = []
        frames = wanted = 0
        for i, num_frames in zip(voice, self.reader.column("num_frames")[voice].tolist(), strict=True):
            if not groups or len(groups[-1]) >= wanted or frames + num_frames > self.max_joined_frames:
                groups.append([])
                frames, wanted = 0, int(rng.integers(fewest, most + 1))
            groups[-1].append(i)
            frames += num_frames
        return [tuple(group) for group in groups]

    def _chained(self, voice: Sequence[int]) -> list[Group]:
        """Each clip with the one that goes on; the last with the first, unless they are in a passage: then it stands
        for itself if it can be cut."""
        if not self.reader.column("passage")[voice[0]]:
            return list(zip(voice, [*voice[1:], voice[0]], strict=True))
        facts = self.reader.entries[voice[-1]].facts
        alone = _split(facts, int(facts["num_frames"])) is not None
        return [*itertools.pairwise(voice), *([(voice[-1], voice[-1])] if alone else [])]


def _split(facts: Mapping[str, Any], num_frames: int) -> tuple[str, str, int] | None:
    """``split_clip`` of a clip with its facts; a build writes the times of words, other corpora have none."""
    words = facts.get("words", ())
    return split_clip(
        facts["text"], num_frames, words, facts["num_samples"] / facts["sample_rate_hz"] if words else 0
    )


def _sounding(messages: Iterable[Message], codes: Callable[[int], Any]) -> list[Message]:
    """Messages with the codes of clips in the place of their numbers."""
    return [
        {"role": m["role"], "content": [s if isinstance(s, str) else codes(s) for s in m["content"]]}  # type: ignore
        for m in messages
    ]


def split_clip(
    text: str,
    num_frames: int,
    words: Sequence[tuple[str, float, float]] = (),
    seconds: float = 0.0,
    min_frames: int = 12,
    min_chars: int = 6,
) -> tuple[str, str, int] | None:
    """Cut a clip in two where its text pauses.

    Without times of its words the frame is guessed from the share of letters before it: off by some frames, which a
    pause forgives. A clip that has no clause end with enough text and sound on both sides is not cut.

    Args:
        words: (word, start, end) in seconds; joined they are the text.
        seconds: of the clip.

    Returns:
        text before, text after, first frame after; or None.
    """
    ends = [i + 1 for i, char in enumerate(text[:-1]) if char in CLAUSE_ENDS and not text[i + 1].isalnum()]
    ends.sort(key=lambda end: abs(2 * end - len(text)))
    for end in ends:
        before, after = text[:end].strip(), text[end:].strip()
        share = _share_of_time(before, words, seconds)
        share = len(before) / max(1, len(before) + len(after)) if share is None else share
        frame = round(num_frames * share)
        long_enough = min(len(before), len(after)) >= min_chars
        if long_enough and min(frame, num_frames - frame) >= min_frames:
            return before, after, frame
    return None


def _share_of_time(before: str, words: Sequence[tuple[str, float, float]], seconds: float) -> float | None:
    """How much of a clip has gone by between the last word of ``before`` and the next; None if no word ends there."""
    letters, said = len("".join(before.split())), 0
    for (word, _, stop), (_, start, _) in itertools.pairwise(words):
        said += len("".join(word.split()))
        if said >= letters:
            return (stop + start) / 2 / seconds if said == letters and seconds else None
    return None
