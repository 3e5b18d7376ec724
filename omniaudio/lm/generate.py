"""One loop for text and speech: text until ``audiogen_start``, frames until book 0 says "end", text again.

Several replies are made together: one row may write while another speaks, and a row that is over leaves. A single
reply is a batch of one. Every event is given out as soon as it is known, so that decoding to sound can start while the
model goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from omniaudio.errors import UserError
from omniaudio.lm.audio_head import KeyValue
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.row_cache import RowCache
from omniaudio.lm.sampling import SamplingSettings, draw
from omniaudio.sequence.spans import Document
from omniaudio.types import device_of

if TYPE_CHECKING:
    from transformers import Cache

ReplyForm = Literal["free", "text", "speech"]
"""``free``: as the model likes; ``text``: never speech; ``speech``: begins with speech (text to speech)."""

TEXT_SAMPLING = SamplingSettings(temperature=0.8, top_k=20, top_p=0.85, repetition=1.1)
AUDIO_SAMPLING = SamplingSettings(temperature=0.5, top_k=5, top_p=0.85, repetition=1.3)
GREEDY = SamplingSettings(temperature=0.0)


@dataclass(frozen=True)
class TextToken:
    """The model said a text token."""

    token_id: int


@dataclass(frozen=True)
class Frame:
    """The model spoke one frame: int64 (K,)."""

    codes_K: Tensor


@dataclass(frozen=True)
class SpeechEnd:
    """A stretch of speech is over. ``complete`` is False when ``max_frames`` cut it off."""

    complete: bool


@dataclass(frozen=True)
class Cut:
    """``max_text_tokens`` ended the reply."""


Event = TextToken | Frame | SpeechEnd | Cut


@dataclass
class Reply:
    """All events in order: text as lists of ids, speech as (S, K) codes."""

    segments: list[list[int] | Tensor] = field(default_factory=list)
    complete: bool = True

    @property
    def text_ids(self) -> list[int]:
        """Text of all segments, joined."""
        return [token_id for segment in self.segments if isinstance(segment, list) for token_id in segment]

    @property
    def codes(self) -> list[Tensor]:
        """Speech segments, (S, K) each."""
        return [segment for segment in self.segments if isinstance(segment, Tensor)]


class Generator:
    """Lets an AudioLM go on from prompts, several at a time, with a key-value cache.

    Rows share matrix products and nothing else: but for their rounding, what a row says is what it says alone.

    The text penalty counts text of this reply; the audio penalty counts, book by book, the codes of the
    stretch of speech at hand. "End of audio" is allowed in book 0 only, and not before the first frame.

    Args:
        lm: the model, in eval mode.
        text: sampling of text; the default is the published one.
        audio: sampling of codes; the default is the published one.
        max_text_tokens, max_frames: limits of a whole reply.
        overwritten_ids: a fault of the published inference, for parity with it alone: after the first stretch of
            speech, a text ends at the first of these ids (tokens with one of ``,!?，。！？``), which is told, while the
            model reads ``audiogen_start`` in its place and so forgets its own punctuation. Empty: no text is lost.
    """

    def __init__(
        self,
        lm: AudioLM,
        text: SamplingSettings = TEXT_SAMPLING,
        audio: SamplingSettings = AUDIO_SAMPLING,
        max_text_tokens: int = 512,
        max_frames: int = 750,
        overwritten_ids: Collection[int] = (),
    ) -> None:
        self.lm, self.text, self.audio = lm, text, audio
        self.max_text_tokens, self.max_frames = max_text_tokens, max_frames
        self.overwritten_ids = frozenset(overwritten_ids)
        space = lm.token_space
        self._allowed_V = torch.arange(space.vocab_size) < space.text_vocab_size
        self._allowed_V[list(space.special_ids.values())] = False
        self._allowed_V[space.eos] = True

    def allowed_text(self, may_speak: bool) -> Tensor:
        """(V,) True for ids that may come in text: text, eos and, if wished, audiogen_start."""
        allowed_V = self._allowed_V.clone()
        allowed_V[self.lm.token_space.audiogen_start] = may_speak
        return allowed_V

    def reply(self, prompt: Document, form: ReplyForm = "free", seed: int = 0) -> Reply:
        """The whole reply to a prompt."""
        return self.replies([prompt], form, [seed])[0]

    def replies(
        self, prompts: Sequence[Document], form: ReplyForm | Sequence[ReplyForm], seeds: Sequence[int]
    ) -> list[Reply]:
        """The whole replies to several prompts of any lengths, made together; a seed each, a form for each or all."""
        events: list[list[Event]] = [[] for _ in prompts]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for number, event in self.stream_rows(prompts, form, generators):
            events[number].append(event)
        return [collect(of_row) for of_row in events]

    def stream(
        self,
        prompt: Document,
        form: ReplyForm = "free",
        generator: torch.Generator | None = None,
        cache: Cache | None = None,
    ) -> Iterator[Event]:
        """Events of the reply to a prompt, each when it is known.

        Args:
            prompt: what the model goes on from; if its last id is ``audiogen_start``, speech follows.
            form: what kind of reply.
            generator: randomness, on the CPU.
            cache: past of an earlier call, which ``prompt`` continues; extended in place.
        """
        caches = None if cache is None else [cache]
        return (event for _, event in self.stream_rows([prompt], form, [generator], caches))

    @torch.inference_mode()
    def read(self, beginning: Document, cache: Cache) -> None:
        """Take in the next of a prompt of which more will come; ``stream`` reads its end, and goes on."""
        self._check(beginning)
        device = device_of(self.lm)
        embeds_LD = self.lm.embed(beginning.ids_L.to(device), beginning.codes_LK.to(device))
        self.lm.backbone.step(embeds_LD, cache)

    def _check(self, prompt: Document) -> None:
        vocab_size = self.lm.token_space.vocab_size
        if not len(prompt):
            raise UserError("generate: the prompt is empty")
        if int(prompt.ids_L.max()) >= vocab_size:
            raise UserError(f"generate: the prompt has ids outside the token space of {vocab_size}")

    def stream_rows(
        self,
        prompts: Sequence[Document],
        form: ReplyForm | Sequence[ReplyForm],
        generators: Sequence[torch.Generator | None],
        caches: Sequence[Cache] | None = None,
    ) -> Iterator[tuple[int, Event]]:
        """Events of several replies, each with the number of its prompt. Arguments as in ``stream``, one a prompt; the
        form may be one for all."""
        for prompt in prompts:
            self._check(prompt)
        assert len(generators) == len(prompts), f"{len(generators)} generators for {len(prompts)} prompts"
        caches = caches or [self.lm.backbone.new_cache() for _ in prompts]
        forms = one_each("form", form, len(prompts))
        rows = [
            _Row(self, number, *of_row) for number, of_row in enumerate(zip(forms, generators, strict=True))
        ]
        return _Run(self, rows, caches).events(prompts)


Piece = Document | int | list[int]
"""What a row takes in: its prompt, then a token or the codes of a frame at a time."""


class _Run:
    """The loop: every row takes a piece in, the model reads them all, and the next ones are drawn."""

    def __init__(self, owner: Generator, rows: Sequence[_Row], caches: Sequence[Cache]) -> None:
        self.owner, self.lm, self.space = owner, owner.lm, owner.lm.token_space
        self.device = device_of(owner.lm)
        self.rows, self.caches = list(rows), caches
        self.past: RowCache | None = None

    def events(self, prompts: Sequence[Document]) -> Iterator[tuple[int, Event]]:
        pieces: dict[int, Piece] = dict(enumerate(prompts))
        while self.rows:
            for row in self.rows:
                for event in row.take(pieces[row.number]):
                    yield row.number, event
            self._let_go()
            if self.rows:
                pieces = self._next_pieces(self._read())

    def _let_go(self) -> None:
        """Replies that are over take no more part."""
        going = [i for i, row in enumerate(self.rows) if not row.over]
        if self.past is not None and 0 < len(going) < len(self.rows):
            self.past.keep(going)
        self.rows = [self.rows[i] for i in going]

    @torch.inference_mode()
    def _read(self) -> Tensor:
        """(B, D), the hidden state behind what each row took in."""
        backbone = self.lm.backbone
        if self.past is not None:
            return backbone.step_rows(self._embed(self.rows), self.past)
        caches = [self.caches[row.number] for row in self.rows]
        hidden = [  # prompts one by one: they are long, and padding would be work
            backbone.step(self._embed([row]), cache)[-1] for row, cache in zip(self.rows, caches, strict=True)
        ]
        self.past, self.caches = RowCache(caches), ()
        return torch.stack(hidden)

    def _embed(self, rows: Sequence[_Row]) -> Tensor:
        ids_L, codes_LK = torch.cat([row.ids_L for row in rows]), torch.cat([row.codes_LK for row in rows])
        return self.lm.embed(ids_L.to(self.device), codes_LK.to(self.device))

    @torch.inference_mode()
    def _next_pieces(self, hidden_BD: Tensor) -> dict[int, Piece]:
        """By number of the row: a token of those that write, a frame of those that speak."""
        pieces: dict[int, Piece] = {}
        for speak, draw_pieces in ((False, self._tokens), (True, self._frames)):
            places = [i for i, row in enumerate(self.rows) if row.speaking == speak]
            if places:
                pieces.update(draw_pieces([self.rows[i] for i in places], hidden_BD[places]))
        return pieces

    def _tokens(self, rows: Sequence[_Row], hidden_BD: Tensor) -> dict[int, Piece]:
        logits_BV = self.lm.backbone.lm_head(hidden_BD)[:, : self.space.vocab_size].float().cpu()
        allowed_BV = torch.stack([self.owner.allowed_text(row.may_speak) for row in rows])
        said_BV = torch.stack([row.said_V for row in rows])
        generators = [row.generator for row in rows]
        token_B = draw(logits_BV.where(allowed_BV, -torch.inf), self.owner.text, said_BV, generators)
        return {row.number: token for row, token in zip(rows, token_B.tolist(), strict=True)}

    def _frames(self, rows: Sequence[_Row], x_BD: Tensor) -> dict[int, Piece]:
        """Frames book by book; ``audiogen_end`` for the rows whose book 0 ends them."""
        pieces: dict[int, Piece] = {row.number: self.space.audiogen_end for row in rows}
        past, codes = list[KeyValue](), list[Tensor]()
        for book, size in enumerate(self.space.codebook_sizes):
            logits_BV = self.lm.audio_head.step(x_BD, past).float().cpu()
            may_end_B = torch.tensor([book == 0 and row.may_end for row in rows])
            logits_BV[~may_end_B, size] = -torch.inf
            said_BV = torch.stack([row.spoken_KV[book] for row in rows])
            code_B = draw(logits_BV, self.owner.audio, said_BV, [row.generator for row in rows])
            if book == 0:
                going = (code_B < size).nonzero()[:, 0].tolist()
                if not going:
                    return pieces
                rows, code_B = [rows[i] for i in going], code_B[going]
                past = [(key[going], value[going]) for key, value in past]
                x_BD = torch.zeros_like(x_BD[going])
            x_BD = x_BD + self.lm.audio_embed[book](code_B.to(self.device))
            codes.append(code_B)
        frames = torch.stack(codes, dim=1).tolist()
        return pieces | {row.number: frame for row, frame in zip(rows, frames, strict=True)}


class _Row:
    """One reply in the making.

    Attributes:
        number: of its prompt.
        ids_L, codes_LK: the positions that it took in last.
        speaking: a frame comes next, not a token.
        over: nothing comes next.
        said_V: True for the text ids of the reply.
        spoken_KV: True for the codes, by book, of the stretch of speech at hand.
    """

    def __init__(
        self, owner: Generator, number: int, form: ReplyForm, generator: torch.Generator | None
    ) -> None:
        self.owner, self.space, self.number = owner, owner.lm.token_space, number
        self.form, self.generator = form, generator
        self.speaking = self.over = False
        self.num_tokens = self.num_frames = 0
        self.said_V = torch.zeros(self.space.vocab_size, dtype=torch.bool)

    @property
    def may_speak(self) -> bool:
        return self.form != "text" and self.num_frames < self.owner.max_frames

    @property
    def may_end(self) -> bool:
        return bool(self.spoken_KV[0].any())

    def take(self, piece: Piece) -> Iterator[Event]:
        """Go on by a piece, and tell what happened."""
        if isinstance(piece, Document):
            self._take_prompt(piece)
        elif isinstance(piece, list):
            self.ids_L, self.codes_LK = torch.tensor([self.space.audio_pad]), torch.tensor([piece])
            self.num_frames += 1
            for said_V, code in zip(self.spoken_KV, piece, strict=True):
                said_V[code] = True
            yield Frame(self.codes_LK[0])
        else:
            self.ids_L, self.codes_LK = torch.tensor([piece]), torch.zeros_like(self.codes_LK[:1])
            if piece == self.space.eos:
                self.over = True
            elif piece == self.space.audiogen_start:
                self._begin_speech()
            elif piece == self.space.audiogen_end:
                self.speaking = False
                yield SpeechEnd(True)
            else:
                self.num_tokens += 1
                if piece in self.owner.overwritten_ids and self.num_frames and self.may_speak:
                    self.ids_L = torch.tensor([self.space.audiogen_start])
                    self._begin_speech()
                else:
                    self.said_V[piece] = True
                yield TextToken(piece)
        yield from self._end_at_limit()

    def _take_prompt(self, prompt: Document) -> None:
        self.ids_L, self.codes_LK = prompt.ids_L, prompt.codes_LK
        start = self.space.audiogen_start
        if self.form == "speech" and int(self.ids_L[-1]) != start:
            self.ids_L = functional.pad(self.ids_L, (0, 1), value=start)
            self.codes_LK = functional.pad(self.codes_LK, (0, 0, 0, 1))
        if int(self.ids_L[-1]) == start:
            self._begin_speech()

    def _begin_speech(self) -> None:
        self.speaking = True
        self.spoken_KV = [torch.zeros(size + 1, dtype=torch.bool) for size in self.space.codebook_sizes]

    def _end_at_limit(self) -> Iterator[Event]:
        if self.over:
            return
        if self.speaking and self.num_frames >= self.owner.max_frames:
            self.over = True
            yield SpeechEnd(False)
        elif not self.speaking and self.num_tokens >= self.owner.max_text_tokens:
            self.over = True
            if self.owner.max_text_tokens:  # with 0, speech alone was asked for
                yield Cut()


def one_each(name: str, value: Any, num_rows: int) -> list[Any]:
    """What was given for each row, or for all of them at once.

    Raises:
        UserError: neither one nor as many as rows.
    """
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return [value] * num_rows
    if len(value) != num_rows:
        raise UserError(
            f"{name}: {len(value)} given for {num_rows} prompts; give one for all, or one for each"
        )
    return list(value)


def collect(events: Iterable[Event]) -> Reply:
    """Events to a reply."""
    reply, frames = Reply(), list[Tensor]()
    for event in events:
        if isinstance(event, Frame):
            frames.append(event.codes_K)
        elif isinstance(event, SpeechEnd):
            reply.complete = reply.complete and event.complete
            if frames:
                reply.segments.append(torch.stack(frames))
            frames = []
        elif isinstance(event, Cut):
            reply.complete = False
        elif reply.segments and isinstance(reply.segments[-1], list):
            reply.segments[-1].append(event.token_id)
        else:
            reply.segments.append([event.token_id])
    return reply
