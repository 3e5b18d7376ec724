"""Measures of an exported model on held-out speech. Each returns plain data; ``omniaudio evaluate`` prints it."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniaudio.data.index import text_number
from omniaudio.data.shards import ShardReader
from omniaudio.data.steps import band_hz
from omniaudio.dialogue.flow_ways import FlowWays, way_name
from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.dialogue.speech_stream import SpeechStream
from omniaudio.errors import UserError
from omniaudio.frontend.audio import read_audio, resample, write_wav
from omniaudio.frontend.mel import LogMel, MelSpec
from omniaudio.frontend.text import normalise_text
from omniaudio.lm.generate import Generator
from omniaudio.metrics.asr_judge import AsrJudge
from omniaudio.metrics.cer import character_error_rate
from omniaudio.metrics.codes import BookUse, book_use
from omniaudio.metrics.mel import mel_mae
from omniaudio.metrics.speed import Stopwatch
from omniaudio.types import Codes

VARIANTS = {
    "original": "original recording",
    "copy": "copy synthesis (mel → vocoder)",
    "coarse": "codes → coarse mel → vocoder",
    "refined": "codes → refined mel → vocoder",
    "flow": "codes → flow matching → vocoder",
}
"""What is made of every clip, in words."""

Track = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A held-out recording."""

    key: str
    wav_N: np.ndarray
    sample_rate_hz: int
    text: str
    language: str
    band_hz: float  # highest frequency with sound

    def bins(self, spec: MelSpec) -> Tensor:
        """(1, M) True for the bins of a mel in which the recording has sound."""
        return spec.bins_within(torch.tensor([self.band_hz]))

    @property
    def seconds(self) -> float:
        return len(self.wav_N) / self.sample_rate_hz

    @property
    def name(self) -> str:
        """Key as a file name."""
        return self.key.replace("/", "_")


def _items_of(reader: ShardReader, speakers: Sequence[str] | None) -> Iterable[int]:
    """Numbers of the clips of these speakers, found without reading the facts of others; None: of all."""
    if speakers is None:
        return range(len(reader))
    numbers = [text_number(label) for label in speakers]
    items: list[int] = np.flatnonzero(np.isin(reader.column("speaker"), numbers)).tolist()
    return items


def choose_clips(
    shards_dir: str | Path,
    split: str,
    num_clips: int,
    min_words: int = 4,
    max_words: int | None = None,
    corpora: Sequence[str] | None = None,
    speakers: Sequence[str] | None = None,
) -> list[Clip]:
    """Clips of a split, the same every time: languages in turn, and first those of a fit number of words.

    Fit is ``min_words`` to ``max_words`` (None: no limit). Inside a language the order is that of a hash of
    the key, so that neighbours in the corpus do not stand together.

    Args:
        corpora, speakers: names of those whose clips are taken; None: all.
    """
    reader = ShardReader(shards_dir, split)
    by_language: dict[str, list[tuple[bool, str, int]]] = {}
    for i in _items_of(reader, speakers):
        entry = reader.entries[i]
        if corpora is not None and entry.facts.get("corpus") not in corpora:
            continue
        text, language = entry.facts["text"], entry.facts["language"]
        if normalise_text(text, language):
            order = hashlib.sha256(entry.key.encode()).hexdigest()
            num_words = len(text.split())
            other = num_words < min_words or (max_words is not None and num_words > max_words)
            by_language.setdefault(language, []).append((other, order, i))
    queues = [[i for *_, i in sorted(found)] for _, found in sorted(by_language.items())]
    longest = max(map(len, queues), default=0)
    chosen = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:num_clips]
    if not chosen:
        of = "".join(f" of {', '.join(names)}" for names in (corpora, speakers) if names is not None)
        raise UserError(f"{shards_dir}: split {split!r} has no clip{of} with words to evaluate")
    return [_clip(reader, i) for i in chosen]


def _clip(reader: ShardReader, i: int) -> Clip:
    facts = reader.entries[i].facts
    return Clip(
        key=reader.entries[i].key,
        wav_N=read_audio(reader.read(i)["flac"]),
        sample_rate_hz=int(facts["sample_rate_hz"]),
        text=facts["text"],
        language=facts["language"],
        band_hz=band_hz(facts),
    )


# -- tokenizer


@dataclass
class TokenizerScores:
    """What the codes keep.

    Attributes:
        mae: path -> mean absolute error of the log-mel, reading 1, 2, ... K books.
        books: use of each book.
        codes: of every clip, in order.
    """

    mae: dict[str, list[float]] = field(default_factory=dict)
    books: list[BookUse] = field(default_factory=list)
    codes: list[Codes] = field(default_factory=list)


def score_tokenizer(model: SpokenLanguageModel, clips: Sequence[Clip], track: Track) -> TokenizerScores:
    """Mel error by number of books (arXiv:2502.17239, table 2), and use of the books."""
    tokenizer = model.tokenizer
    log_mel = LogMel(tokenizer.decoder_mel_spec).to(model.device)
    num_books = len(tokenizer.codebook_sizes)
    sums = {path: np.zeros((num_books, 2)) for path in ("refined", "coarse")}
    scores = TokenizerScores()
    for clip in track(clips, "codes and mels"):
        codes = model.encode(clip.wav_N, clip.sample_rate_hz)
        scores.codes.append(codes)
        wav_N = resample(clip.wav_N, clip.sample_rate_hz, tokenizer.sample_rate_hz)
        wav_BN = torch.from_numpy(wav_N)[None].to(model.device)
        true_BMT, true_len_B = log_mel(wav_BN, torch.tensor([len(wav_N)], device=model.device))
        bins_BM = clip.bins(tokenizer.decoder_mel_spec).to(model.device)
        for book in range(num_books):
            with torch.inference_mode():
                decoded = tokenizer.decode(codes, book + 1)
            length_B = torch.minimum(decoded.mel_len_B, true_len_B)
            for path, x_hat in (("refined", decoded.refined_BMT), ("coarse", decoded.coarse_BMT)):
                sums[path][book] += mel_mae(x_hat, true_BMT, length_B, bins_BM)
    scores.mae = {path: [float(total / count) for total, count in rows] for path, rows in sums.items()}
    scores.books = book_use((codes.codes_BSK for codes in scores.codes), tokenizer.codebook_sizes)
    return scores


# -- speech


def variants(ways: FlowWays, chunks: Sequence[int] = ()) -> list[str]:
    """Names of what is made of a clip; ``streamed_12`` has chunks of 12 code frames, and see FlowWays."""
    return [*VARIANTS, *ways.variants(), *(f"streamed_{num}" for num in chunks)]


def variant_name(variant: str) -> str:
    """In words."""
    kind, *how = variant.split("_")
    if kind == "streamed":
        return f"codes → flow matching, streamed by {how[0]} frames → vocoder"
    return f"codes → flow matching, {way_name(variant)} → vocoder" if how else VARIANTS[variant]


def synthesize(
    model: SpokenLanguageModel,
    clip: Clip,
    codes: Codes,
    ways: FlowWays | None = None,
    chunks: Sequence[int] = (),
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All variants of a clip; "flow" is solved as the model says, other ways may be asked for besides.

    Args:
        ways: other ways to solve flow matching.
        chunks: sizes in code frames; decoder, flow and vocoder get the codes chunk by chunk, as they would be written.

    Returns:
        waveforms by variant, all at the model's rate but "original" at the clip's; and log-mels (M, T) of
        the vocoder by "original", "coarse", "refined", "flow", "vocoded" (of the waveform made from "flow").
    """
    wavs: dict[str, np.ndarray] = {"original": clip.wav_N}
    mels: dict[str, np.ndarray] = {}
    true_BMT, true_len_B = model.true_mel(clip.wav_N, clip.sample_rate_hz)
    mels["original"] = true_BMT[0].cpu().numpy()
    wavs["copy"] = model.vocode(true_BMT, true_len_B)[0]
    for path in ("coarse", "refined", "flow"):
        mel_BMT, mel_len_B = model.mel(codes, path=path)  # type: ignore[arg-type]
        mels[path] = mel_BMT[0, :, : int(mel_len_B[0])].float().cpu().numpy()
        wavs[path] = model.vocode(mel_BMT, mel_len_B)[0]
    for name, options in (ways or FlowWays()).variants().items():
        wavs[name] = model.vocode(*model.mel(codes, path="flow", **options))[0]
    for num in chunks:
        settings = dataclasses.replace(model.settings.stream, chunk_frames=num)
        stream = SpeechStream(model, settings, path="flow")
        wavs[f"streamed_{num}"] = np.concatenate([stream.push(codes.codes_BSK[0]), stream.finish()])
    mels["vocoded"] = model.true_mel(wavs["flow"], model.sample_rate_hz)[0][0].cpu().numpy()
    return wavs, mels


def save_sample(
    folder: Path,
    model: SpokenLanguageModel,
    clip: Clip,
    made: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
) -> dict[str, Any]:
    """Write the variants and mels of one clip for the report; returns its record with paths below ``folder``."""
    wavs, mels = made
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"key": clip.key, "text": clip.text, "language": clip.language, "wavs": {}}
    for variant, wav_N in wavs.items():
        path = folder / "samples" / f"{clip.name}_{variant}.wav"
        write_wav(path, wav_N, clip.sample_rate_hz if variant == "original" else model.sample_rate_hz)
        record["wavs"][variant] = str(path.relative_to(folder))
    mels_path = folder / "samples" / f"{clip.name}_mels.npz"
    np.savez_compressed(mels_path, **{name: mel.astype(np.float16) for name, mel in mels.items()})  # type: ignore[arg-type]
    record["mels"] = str(mels_path.relative_to(folder))
    return record


def judge_variants(
    judge: AsrJudge, clips: Sequence[Clip], wavs: dict[str, list[np.ndarray]], rate_hz: int, track: Track
) -> dict[str, list[str]]:
    """What the judge hears: variant -> text of every clip. ``rate_hz`` is that of all but "original"."""
    heard: dict[str, list[str]] = {variant: [] for variant in wavs}
    languages = [clip.language for clip in clips]
    starts = range(0, len(clips), judge.batch_size)
    for variant, start in track([(v, s) for v in wavs for s in starts], "judge"):
        part = slice(start, start + judge.batch_size)
        rates = [clip.sample_rate_hz if variant == "original" else rate_hz for clip in clips[part]]
        for rate, run in groupby(
            zip(rates, wavs[variant][part], languages[part], strict=True), itemgetter(0)
        ):
            _, alike, spoken = zip(*run, strict=True)
            heard[variant] += judge.transcribe(alike, rate, spoken)
    return heard


def cer_of(clips: Sequence[Clip], heard: Sequence[str]) -> float:
    """Character error rate of what was heard against the transcripts."""
    rate = character_error_rate([clip.text for clip in clips], heard, [clip.language for clip in clips])
    return rate.rate


LOOP = 2.4
"""Ratio of compression above which a text repeats itself."""


def looped(clips: Sequence[Clip], heard: Sequence[str]) -> list[int]:
    """Clips on which a recogniser repeated itself: its text is longer, and shrinks by more, than what was said.

    The measure is Whisper's own (arXiv:2212.04356, section 4.5): bytes before over bytes after compression, above 2.4.
    """

    def shrinks(text: str) -> float:
        content = text.encode()
        return len(content) / len(zlib.compress(content))

    return [
        i
        for i, (clip, text) in enumerate(zip(clips, heard, strict=True))
        if len(text) > len(clip.text) and shrinks(text) > LOOP > shrinks(clip.text)
    ]


# -- language model


def recognise(
    model: SpokenLanguageModel, clips: Sequence[Clip], track: Track, batch_size: int = 8
) -> list[str]:
    """The model's own transcripts, made of so many clips at a time."""
    recordings = [(clip.wav_N, clip.sample_rate_hz, clip.language) for clip in clips]
    starts = range(0, len(clips), batch_size)
    return [
        text
        for start in track(starts, "own recognition")
        for text in model.transcribe_all(recordings[start : start + batch_size])
    ]


# -- speed


def real_time_factors(
    model: SpokenLanguageModel, clips: Sequence[Clip], track: Track, num_frames: int = 50
) -> dict[str, float | None]:
    """Seconds of work for one second of speech, one clip at a time.

    Returns:
        'encode' speech -> codes; 'decode' codes -> speech with flow and vocoder; 'generate' LLM -> codes.
    """
    watches = {name: Stopwatch() for name in ("encode", "decode", "generate")}
    model.decode(model.encode(clips[0].wav_N, clips[0].sample_rate_hz), path="flow")  # warm up
    for clip in track(clips, "speed"):
        with watches["encode"].running(clip.seconds):
            codes = model.encode(clip.wav_N, clip.sample_rate_hz)
        with watches["decode"].running(int(codes.num_frames_B[0]) / model.tokenizer.code_rate_hz):
            model.decode(codes, path="flow")
        settings = model.settings
        generator = Generator(
            model.lm, settings.text, settings.audio, max_text_tokens=0, max_frames=num_frames
        )
        with watches["generate"].running():
            reply = generator.reply(model.text_prompt(clip.text), "speech")
        watches["generate"].speech_sec += sum(map(len, reply.codes)) / model.tokenizer.code_rate_hz
    return {name: watch.real_time_factor for name, watch in watches.items()}
