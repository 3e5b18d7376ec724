"""The whole chain as one object: speech in, speech out. What ``omniaudio.load`` returns.

speech -> codes -> LLM -> text and codes -> hidden states -> flow matching -> mel -> vocoder -> speech
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from omniaudio.acoustic.flow_matching import SOLVERS, WARPS, FlowMatchingDecoder
from omniaudio.data.prompts import prompt_for, to_read, with_voice
from omniaudio.dialogue.flow_ways import is_guidance
from omniaudio.dialogue.listening import Listener
from omniaudio.dialogue.remel import remel
from omniaudio.dialogue.replies import ReplyChunk, SpokenReply, in_chunks, spoken_reply
from omniaudio.dialogue.speech_stream import StreamSettings, chunks_of
from omniaudio.errors import UserError, check_choice
from omniaudio.frontend.audio import one_channel, resample
from omniaudio.frontend.mel import LogMel, MelSpec
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.generate import AUDIO_SAMPLING, GREEDY, TEXT_SAMPLING, Generator, ReplyForm, one_each
from omniaudio.lm.sampling import SamplingSettings
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.sequence.chat import ChatLayout, Message, in_writing, unread
from omniaudio.sequence.spans import Document, DocumentLayouts
from omniaudio.types import Codes, device_of

PARTS = ("tokenizer", "lm", "flow", "vocoder")
"""Names of the parts; they begin the names of the exported tensors."""

TASKS = ("transcribe", "repeat", "continue", "language")
"""What may be asked of a recording."""

HISTORIES = ("audio", "text")
"""What the turns before the last are to the LLM."""

DecodePath = Literal["flow", "refined", "coarse"]
DECODE_PATHS: tuple[DecodePath, ...] = ("flow", "refined", "coarse")


def check_decode_path(path: DecodePath) -> DecodePath:
    """The path, if it is one."""
    if path not in DECODE_PATHS:
        raise UserError(f"decode path {path!r} is not one of {', '.join(DECODE_PATHS)}")
    return path


@dataclass(frozen=True, kw_only=True)
class DialogueSettings:
    """How an exported model speaks unless told otherwise.

    Args:
        text, audio: sampling of replies; transcripts are always the likeliest words.
        max_text_tokens, max_frames: limits of a reply.
        flow_steps: steps of flow matching, at least 1.
        flow_guidance: strength of its guidance, at least 0.
        flow_solver, flow_warp: see FlowMatchingDecoder.decode.
        mel_path: what codes become speech through: "flow", or the tokenizer's own mels "refined" and "coarse",
            which are the clearer ones as long as flow matching has had little training.
        voices: that replies may be asked in, by the names that the training gave them -> its speakers of that name.
        stream: chunks of speech.
    """

    text: SamplingSettings = TEXT_SAMPLING
    audio: SamplingSettings = AUDIO_SAMPLING
    max_text_tokens: int = 128
    max_frames: int = 200
    flow_steps: int = 10
    flow_guidance: float = 0.7
    flow_solver: str = "euler"
    flow_warp: str = "cosine"
    mel_path: DecodePath = "flow"
    voices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stream: StreamSettings = field(default_factory=StreamSettings)

    def __post_init__(self) -> None:
        check_decode_path(self.mel_path)
        if self.flow_steps < 1:
            raise UserError(f"dialogue.flow_steps {self.flow_steps}: at least 1")
        if not is_guidance(self.flow_guidance):
            raise UserError(f"dialogue.flow_guidance {self.flow_guidance}: a finite number, at least 0")
        check_choice("dialogue.flow_solver", self.flow_solver, SOLVERS)
        check_choice("dialogue.flow_warp", self.flow_warp, WARPS)

    def flow_options(self) -> dict[str, Any]:
        """How flow matching is solved, as arguments of FlowMatchingDecoder.decode."""
        return {
            "num_steps": self.flow_steps,
            "guidance": self.flow_guidance,
            "solver": self.flow_solver,
            "time_warp": self.flow_warp,
        }


class SpokenLanguageModel(nn.Module):
    """Tokenizer, audio LLM, flow-matching decoder and vocoder under one token layout.

    Args:
        tokenizer, lm, flow, vocoder: trained parts; checked against each other.
        text_tokenizer: of the LLM.
        settings: defaults of generation, for good or until they are replaced:
            ``model.settings = replace(model.settings, text=replace(model.settings.text, temperature=0.5))``, with
            ``replace`` of ``dataclasses``.
    """

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        lm: AudioLM,
        flow: FlowMatchingDecoder,
        vocoder: nn.Module,
        text_tokenizer: TextTokenizer,
        settings: DialogueSettings | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.lm, self.flow, self.vocoder = tokenizer, lm, flow, vocoder
        self.text_tokenizer = text_tokenizer
        self.settings = settings or DialogueSettings()
        self.chat = ChatLayout(lm.token_space, text_tokenizer.encode)
        self._check_parts()
        self.vocoder_mel = LogMel(self.mel_spec)

    @classmethod
    def from_folder(cls, folder: Path, device: str = "cpu") -> SpokenLanguageModel:
        """Load what ``omniaudio export`` wrote. See ``omniaudio.load``."""
        from omniaudio.dialogue.folder import read_model

        return read_model(folder, device)

    @property
    def mel_spec(self) -> MelSpec:
        """Of the vocoder and of flow matching."""
        spec = self.vocoder.mel_spec
        assert isinstance(spec, MelSpec)
        return spec

    @property
    def sample_rate_hz(self) -> int:
        """Of the speech that comes out."""
        return self.mel_spec.sample_rate_hz

    @property
    def device(self) -> torch.device:
        return device_of(self)

    # -- speech and codes

    @torch.inference_mode()
    def encode(self, wav_N: np.ndarray, sample_rate_hz: int) -> Codes:
        """Speech, float32 in [-1, 1] of any rate and length, to codes (batch of one)."""
        at_tokenizer = resample(one_channel(wav_N), sample_rate_hz, self.tokenizer.sample_rate_hz)
        wav_BN = torch.from_numpy(at_tokenizer)[None].to(self.device)
        return self.tokenizer.encode(wav_BN, torch.tensor([len(at_tokenizer)], device=self.device))

    @torch.inference_mode()
    def mel(
        self,
        codes: Codes,
        num_books: int | None = None,
        path: DecodePath | None = None,
        seed: int = 0,
        **flow: Any,
    ) -> tuple[Tensor, Tensor]:
        """Codes to the mel that the vocoder reads.

        Args:
            codes: of speech.
            num_books: read only so many leading books; None reads all.
            path: "flow" matches the hidden states of the decoder; "refined" and "coarse" are the tokenizer's
                own mels, brought to the vocoder's by ``remel``; None is that of ``settings``.
            seed: of the flow's starting noise.
            flow: ``flow_steps``, ``flow_solver``, ``flow_warp``, ``flow_guidance`` in place of those of ``settings``.

        Returns:
            mel_BMT, mel_len_B.
        """
        path = self.settings.mel_path if path is None else check_decode_path(path)
        decoded = self.tokenizer.decode(codes, num_books)
        if path != "flow":
            own_BMT = decoded.refined_BMT if path == "refined" else decoded.coarse_BMT
            return remel(own_BMT, decoded.mel_len_B, self.tokenizer.decoder_mel_spec, self.mel_spec)
        return self.flow.decode(
            decoded.hidden_BTD,
            decoded.hidden_len_B,
            generator=torch.Generator().manual_seed(seed),
            chunks=chunks_of(self.tokenizer, self.flow, self.settings.stream),
            **replace(self.settings, **flow).flow_options(),
        )

    @torch.inference_mode()
    def vocode(self, mel_BMT: Tensor, mel_len_B: Tensor) -> list[np.ndarray]:
        """Mels to waveforms at ``sample_rate_hz``, one item at a time: nothing depends on the batch."""
        items = zip(mel_BMT, mel_len_B.tolist(), strict=True)
        return [self.vocoder(mel_MT[None, :, :n])[0].float().cpu().numpy() for mel_MT, n in items]

    def decode(
        self, codes: Codes, num_books: int | None = None, path: DecodePath | None = None, seed: int = 0
    ) -> np.ndarray:
        """Codes (batch of one) to speech, float32 (N,) at ``sample_rate_hz``. Arguments as in ``mel``."""
        assert len(codes.num_frames_B) == 1, codes.num_frames_B
        if not int(codes.num_frames_B[0]):
            return np.zeros(0, np.float32)
        return self.vocode(*self.mel(codes, num_books, path, seed))[0]

    @torch.inference_mode()
    def true_mel(self, wav_N: np.ndarray, sample_rate_hz: int) -> tuple[Tensor, Tensor]:
        """The vocoder's mel of recorded speech: mel_BMT, mel_len_B."""
        wav_N = resample(one_channel(wav_N), sample_rate_hz, self.sample_rate_hz)
        length_B = torch.tensor([len(wav_N)], device=self.device)
        return self.vocoder_mel(torch.from_numpy(wav_N)[None].to(self.device), length_B)

    def copy_synthesis(self, wav_N: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Speech through mel and vocoder only: the best that the vocoder can do. (N,) at ``sample_rate_hz``."""
        return self.vocode(*self.true_mel(wav_N, sample_rate_hz))[0]

    # -- dialogue

    def stream(
        self,
        messages: Sequence[Message],
        speak: bool = True,
        seed: int = 0,
        history: str = "audio",
        voice: str | None = None,
        chunk_frames: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[ReplyChunk]:
        """Answer a chat while it is being made: text when it is written, speech when a chunk of it is there.

        All chunks together say what ``reply`` says with the same arguments and settings: its samples where a stretch of
        speech is one chunk or the parts were trained for streaming, else nearly its samples (see SpeechStream).
        The last chunk tells whether a limit cut the reply off. Closing the iterator ends the generation.

        Args:
            messages, speak, seed, history, voice: see ``reply``.
            chunk_frames: code frames of a chunk, 0: stretches as a whole; None: that of ``settings.stream``, 12 in
                exports unless they were made with another.
            cancelled: asked after every token and every frame of codes; once it says True nothing more comes: e.g.
                ``is_set`` of a ``threading.Event`` that another thread sets when the user breaks in.
        """
        prompt, saved = self._asked(messages, speak, history, voice)
        if history == "text":
            yield {"saved_positions": saved}
        generator = torch.Generator().manual_seed(seed)
        events = self._generator().stream(prompt, "free" if speak else "text", generator)
        yield from in_chunks(self, events, seed, chunk_frames, cancelled)

    def listen(
        self,
        rate_hz: float,
        messages: Sequence[Message] = (),
        task: str | None = None,
        language: str = "en",
        speak: bool = True,
        history: str = "audio",
        voice: str | None = None,
    ) -> Listener:
        """Hear the user's next turn while it is spoken: see Listener.

        Args:
            rate_hz: of its samples.
            messages: the turns before it, which are read at once.
            task, language: what is asked of it, see ``question``.
            speak, history, voice: see ``reply``.
        """
        one_frame = torch.zeros(1, len(self.tokenizer.codebook_sizes), dtype=torch.int64)
        turn = self._turn(one_frame, task, language)
        prompt, saved = self._asked([*messages, turn], speak, history, voice)
        return Listener(self, self._generator(), rate_hz, turn, prompt, "free" if speak else "text", saved)

    def reply_to(
        self,
        pieces: Iterable[np.ndarray],
        rate_hz: float,
        messages: Sequence[Message] = (),
        task: str | None = None,
        language: str = "en",
        speak: bool = True,
        seed: int = 0,
        history: str = "audio",
        voice: str | None = None,
        chunk_frames: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[ReplyChunk]:
        """Listen while a user speaks, and answer as ``stream`` does as soon as the speech is over.

        Args:
            pieces: samples as they come, e.g. of a microphone, float (N,) in [-1, 1], each of any length; their end is
                the end of the turn.
            rate_hz, messages, task, language, history, voice: see ``listen``.
            speak, seed, chunk_frames, cancelled: see ``stream``.
        """
        listener = self.listen(rate_hz, messages, task, language, speak, history, voice)
        for piece_N in pieces:
            listener.hear(piece_N)
        if history == "text":
            yield {"saved_positions": listener.saved_positions}
        yield from listener.reply(seed, chunk_frames, cancelled)

    def reply(
        self,
        messages: Sequence[Message],
        speak: bool = True,
        seed: int = 0,
        history: str = "audio",
        voice: str | None = None,
    ) -> SpokenReply:
        """Answer a chat.

        Args:
            messages: turns as in ``omniaudio.sequence.chat.Message``; speech stands in them as Codes.
            speak: ask for a spoken reply (text and speech in turn) rather than text.
            seed: the same seed gives the same reply.
            history: "audio": the model hears all turns; "text": it reads those before the last, which are then much
                shorter, in the words of ``with_texts``.
            voice: one of ``settings.voices``, named in the system message as in the training; None: as the model likes.
        """
        return self.replies([messages], speak, [seed], history, voice)[0]

    def replies(
        self,
        chats: Sequence[Sequence[Message]],
        speak: bool | Sequence[bool] = True,
        seeds: Sequence[int] | None = None,
        history: str | Sequence[str] = "audio",
        voice: str | Sequence[str | None] | None = None,
    ) -> list[SpokenReply]:
        """Answer several chats together, each as ``reply`` answers it, in a fraction of the time.

        Args:
            chats: messages of each. All are in memory at once: give a long list in parts.
            speak, history, voice: as in ``reply``, one for all or one a chat.
            seeds: one a chat; None is 0 for each.
        """
        num = len(chats)
        seeds = one_each("seeds", 0 if seeds is None else seeds, num)
        speaks = one_each("speak", speak, num)
        ways = speaks, one_each("history", history, num), one_each("voice", voice, num)
        asked = [self._asked(*of_row) for of_row in zip(chats, *ways, strict=True)]
        forms: list[ReplyForm] = ["free" if each else "text" for each in speaks]
        replies = self._generator().replies([prompt for prompt, _ in asked], forms, seeds)
        return [spoken_reply(self, *row) for row in zip(replies, seeds, asked, strict=True)]

    def with_texts(self, messages: Sequence[Message]) -> list[Message]:
        """A chat whose turns before the last have ``text`` beside their sounds.

        What has none, and no written words if it is the assistant's, is transcribed by the model, asked in English.
        Keep the result while a chat goes on, and no turn is transcribed twice.
        """
        unknown = {i: sounds for i, message in enumerate(messages[:-1]) if (sounds := unread(message))}
        words = prompt_for("sft_transcribe", "en")
        texts = self._written([{"role": "user", "content": [*sounds, words]} for sounds in unknown.values()])
        known = dict(zip(unknown, texts, strict=True))
        return [
            {**message, "text": known[i]} if i in known else message for i, message in enumerate(messages)
        ]

    def transcribe(self, wav_N: np.ndarray, sample_rate_hz: int, language: str = "en") -> str:
        """What is said in a recording: the model's own recognition, its likeliest words.

        Args:
            language: ISO 639-1, in which the model is asked (as in its training: that of the speech).
        """
        return self.transcribe_all([(wav_N, sample_rate_hz, language)])[0]

    def transcribe_all(self, recordings: Sequence[tuple[np.ndarray, int, str]]) -> list[str]:
        """Several recordings together: (samples, rate, language) as in ``transcribe``."""
        return self._written(
            [self.question(wav_N, hz, "transcribe", language) for wav_N, hz, language in recordings]
        )

    def _written(self, questions: Sequence[Message]) -> list[str]:
        """The likeliest answers in text."""
        prompts = [self.chat.prompt([question], "text") for question in questions]
        replies = self._generator(text=GREEDY).replies(prompts, "text", [0] * len(prompts))
        return [self.text_tokenizer.decode(reply.text_ids).strip() for reply in replies]

    def answer(
        self,
        wav_N: np.ndarray,
        sample_rate_hz: int,
        task: str = "repeat",
        language: str = "en",
        seed: int = 0,
    ) -> SpokenReply:
        """A spoken reply to a recording. Arguments as in ``question`` and ``reply``."""
        return self.reply([self.question(wav_N, sample_rate_hz, task, language)], seed=seed)

    def question(
        self, wav_N: np.ndarray, sample_rate_hz: int, task: str | None, language: str = "en"
    ) -> Message:
        """The user's turn: a recording, and what is asked of it.

        Args:
            task: "transcribe", "repeat", "continue", "language": asked in the words of the training; None asks nothing.
            language: of the words.
        """
        return self._turn(self.encode(wav_N, sample_rate_hz), task, language)

    def _turn(self, codes: Codes | Tensor, task: str | None, language: str) -> Message:
        if task is None:
            return {"role": "user", "content": codes}
        if task not in TASKS:
            raise UserError(f"task {task!r} is not one of {', '.join(TASKS)}")
        words = prompt_for(f"sft_{task}", "en" if task == "language" else language)
        return {"role": "user", "content": [codes, words]}

    def speak(self, text: str, seed: int = 0, voice: str | None = None, language: str = "en") -> SpokenReply:
        """Read a text aloud, one stretch of speech. A ``voice``, see ``reply``, is asked for in that language."""
        if voice is not None:
            return self.reply([to_read(text, language)], seed=seed, voice=voice)
        return self.speak_all([text], [seed])[0]

    def speak_all(self, texts: Sequence[str], seeds: Sequence[int]) -> list[SpokenReply]:
        """Read several texts together, each as ``speak`` reads it with its seed."""
        prompts = [self.text_prompt(text) for text in texts]
        replies = self._generator(max_text_tokens=0).replies(prompts, "speech", seeds)
        asked = [(prompt, 0) for prompt in prompts]
        return [spoken_reply(self, *row) for row in zip(replies, seeds, asked, strict=True)]

    def text_prompt(self, text: str) -> Document:
        """A text as in the <text, audio> pairs of pretraining: speech follows it."""
        return DocumentLayouts(self.lm.token_space).to_read("speak", self.text_tokenizer.encode(text))

    def _asked(
        self, messages: Sequence[Message], speak: bool, history: str, voice: str | None
    ) -> tuple[Document, int]:
        """What a chat is to the LLM, and the positions that its history as text saves."""
        check_choice("history", history, HISTORIES)
        if voice is not None:
            messages = self._voiced(messages, speak, voice)
        form: Literal["text", "speech"] = "speech" if speak else "text"
        prompt = self.chat.prompt(messages, form)
        if history == "audio":
            return prompt, 0
        *past, last = self.with_texts(messages)
        short = self.chat.prompt([*map(in_writing, past), last], form)
        return short, len(prompt) - len(short)

    def _voiced(self, messages: Sequence[Message], speak: bool, voice: str) -> Sequence[Message]:
        if not self.settings.voices:
            raise UserError(f"voice {voice!r}: this model's training named none; see mixture.voices")
        check_choice("voice", voice, self.settings.voices)
        if not speak:
            raise UserError(
                f"voice {voice!r}: a reply in text has none; leave it out or let the reply be spoken"
            )
        return with_voice(messages, voice) if messages else messages

    def _generator(
        self, text: SamplingSettings | None = None, max_text_tokens: int | None = None
    ) -> Generator:
        settings = self.settings
        return Generator(
            self.lm,
            text or settings.text,
            settings.audio,
            max_text_tokens=settings.max_text_tokens if max_text_tokens is None else max_text_tokens,
            max_frames=settings.max_frames,
        )

    def _check_parts(self) -> None:
        tokenizer, space = self.tokenizer, self.lm.token_space
        facts = [
            (
                "lm codebook_sizes",
                tuple(space.codebook_sizes),
                "tokenizer codebook_sizes",
                tuple(tokenizer.codebook_sizes),
            ),
            ("flow mel_spec", self.flow.mel_spec, "vocoder mel_spec", self.mel_spec),
            (
                "flow hidden width",
                self.flow.prenet.hidden_width,
                "tokenizer decoder width",
                tokenizer.decoder.width,
            ),
        ]
        for name, value, owner, expected in facts:
            if value != expected:
                raise UserError(
                    f"model: {name} is {value}, {owner} is {expected}; these parts were not made together"
                )
        if self.text_tokenizer.vocab_size > space.text_vocab_size:
            raise UserError(
                f"model: the text tokenizer has {self.text_tokenizer.vocab_size} ids, "
                f"the LLM was made for {space.text_vocab_size}; these parts were not made together"
            )
