"""What a speech tokenizer keeps, by number of books: the layout of table 1 of arXiv:2502.17239.

Each depth is measured three ways on the same held-out clips: how far the mel is from the true one, what the frozen
text LLM of the tokenizer's training reads from the embeddings, and how much of the speech is left: to independent
recognisers, and to a measure of intelligibility that knows no words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from omniaudio.data.prompts import judges_prompt
from omniaudio.dialogue.evaluation import Clip, Track, cer_of, judge_variants, looped
from omniaudio.dialogue.remel import remel
from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.frontend.mel import LogMel, MelSpec
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.losses.alignment import transcript_loss
from omniaudio.metrics.asr_judge import AsrJudge
from omniaudio.metrics.cer import word_error_rate
from omniaudio.metrics.mel import mel_mae
from omniaudio.metrics.signal import estoi, mean_of
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.quantizers.streaming import StreamingEncoder
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import Codes, MelDecoderOutput, device_of


class Vocoder(Protocol):
    """Log-mel to waveform."""

    mel_spec: MelSpec

    def __call__(self, mel_BMT: Tensor) -> Tensor: ...


@dataclass(kw_only=True)
class Reader:
    """The frozen text LLM that the tokenizer was trained with, and what fits embeddings to it.

    Attributes:
        prompts: whether it was told before the speech what is asked for.
    """

    llm: CausalBackbone
    align: nn.Module
    text_tokenizer: TextTokenizer
    space: TokenSpace
    prompts: bool

    @torch.inference_mode()
    def loss(self, emb_SD: Tensor, text: str, language: str) -> tuple[float, int]:
        """Cross-entropy (sum in nats) of the transcript and its end after the embeddings, and its pieces."""
        ids = [*self.text_tokenizer.encode(text), self.space.eos]
        total, count = transcript_loss(self.llm, [self.align(emb_SD)], [ids], [self._prompt(language)])
        return float(total), count

    @torch.inference_mode()
    def transcribe(self, emb_SD: Tensor, language: str, max_pieces: int = 100) -> str:
        """The likeliest words, piece by piece, until the end."""
        cache, ids = self.llm.new_cache(), list[int]()
        heard_SD = self.align(emb_SD)
        prompt_LD = self.llm.embed_text(
            torch.tensor(self._prompt(language), dtype=torch.long, device=heard_SD.device)
        )
        hidden_D = self.llm.step(torch.cat([prompt_LD, heard_SD]), cache)[-1]
        while len(ids) < max_pieces:
            logits_V = self.llm.lm_head(hidden_D)
            best = int(logits_V[: self.space.text_vocab_size].argmax())
            if logits_V[self.space.eos] >= logits_V[best]:
                break
            ids.append(best)
            hidden_D = self.llm.step(
                self.llm.embed_text(torch.tensor([best], device=hidden_D.device)), cache
            )[-1]
        return self.text_tokenizer.decode(ids)

    def _prompt(self, language: str) -> list[int]:
        return judges_prompt(self.space, self.text_tokenizer.encode, "asr", language, self.prompts)


@dataclass(kw_only=True)
class DepthRow:
    """One row of the table.

    Attributes:
        depth: number of books; 0 is the continuous model.
        mae: mean absolute error of the refined log-mel.
        align_loss: nats a piece of the frozen LLM on the transcripts; None without a reader.
        wer, cer: name of the reader -> rate; "LLM" is the frozen one.
        heard: name of the reader -> what it wrote of every clip.
        estoi: mean over the clips of ``metrics.signal.estoi`` of the speech; None without a vocoder.
    """

    depth: int
    mae: float
    align_loss: float | None = None
    wer: dict[str, float] = field(default_factory=dict)
    cer: dict[str, float] = field(default_factory=dict)
    heard: dict[str, list[str]] = field(default_factory=dict)
    estoi: float | None = None

    @property
    def name(self) -> str:
        return "no VQ" if not self.depth else f"{self.depth} book{'s' if self.depth > 1 else ''}"


@dataclass(kw_only=True)
class Listeners:
    """Who reads and hears what the tokenizer has kept; what is not there has no column.

    Attributes:
        reader: the frozen LLM, on embeddings.
        vocoder: speaks the refined mel, to the judges and to be compared with the recording.
        judges: recognisers, each named by its source.
    """

    reader: Reader | None = None
    vocoder: Vocoder | None = None
    judges: Sequence[AsrJudge] = ()


def score_depth(
    tokenizer: SpeechTokenizer, clips: Sequence[Clip], depth: int, listeners: Listeners, track: Track
) -> DepthRow:
    """Measure one depth.

    Args:
        tokenizer: in eval mode; a continuous one is measured with depth 0.
        clips: held-out speech with transcripts.
        depth: leading books to read.
        listeners: who reads and hears.
        track: progress bar.
    """
    if (depth == 0) != (not tokenizer.codebook_sizes):
        raise UserError(
            f"depth {depth}: a tokenizer of {len(tokenizer.codebook_sizes)} books; 0 is for one trained with "
            "quantizer=continuous, and only for that"
        )
    log_mel = LogMel(tokenizer.decoder_mel_spec).to(device_of(tokenizer))
    row, reader, vocoder = DepthRow(depth=depth, mae=0.0), listeners.reader, listeners.vocoder
    error, nats = np.zeros(2), np.zeros(2)  # sums and what they are divided by
    wavs: list[np.ndarray] = []
    read: list[str] = []
    for clip in track(clips, row.name):
        wav_N = resample(clip.wav_N, clip.sample_rate_hz, tokenizer.sample_rate_hz)
        wav_BN = torch.from_numpy(wav_N)[None].to(device_of(tokenizer))
        length_B = torch.tensor([len(wav_N)], device=wav_BN.device)
        with torch.inference_mode():
            quantized_BSD, num_frames_B = tokenizer.vectors(wav_BN, length_B, depth or None)
            made = tokenizer.decode_vectors(quantized_BSD, num_frames_B)
            emb_SD = tokenizer.bridge.up(quantized_BSD)[0, : int(num_frames_B)]
            true_BMT, true_len_B = log_mel(wav_BN, length_B)
        bins_BM = clip.bins(tokenizer.decoder_mel_spec).to(true_BMT.device)
        error += mel_mae(made.refined_BMT, true_BMT, torch.minimum(made.mel_len_B, true_len_B), bins_BM)
        if reader is not None:
            nats += reader.loss(emb_SD, clip.text, clip.language)
            read.append(reader.transcribe(emb_SD, clip.language))
        if vocoder is not None:
            wavs.append(_spoken(made, tokenizer.decoder_mel_spec, vocoder))
    row.mae = float(error[0] / error[1])
    if reader is not None:
        row.align_loss = float(nats[0] / nats[1])
        _add(row, "LLM", clips, read)
    if vocoder is not None:
        row.estoi, _ = mean_of(
            estoi(clip.wav_N, wav_N, clip.sample_rate_hz, vocoder.mel_spec.sample_rate_hz)
            for clip, wav_N in zip(clips, wavs, strict=True)
        )
        for judge in listeners.judges:
            heard = judge_variants(judge, clips, {row.name: wavs}, vocoder.mel_spec.sample_rate_hz, track)
            _add(row, judge.name, clips, heard[row.name])
    return row


@dataclass(kw_only=True)
class StreamingRow:
    """Codes of a recording that is still going on, against those of the whole.

    Attributes:
        segment_frames, context_frames: see StreamingEncoder.
        delay_sec: longest wait of a sample for its code.
        equal: share of equal codes, book by book.
        mae: mean absolute error of the refined log-mel that they give.
        offline_mae: the same from the codes of the whole.
    """

    segment_frames: int
    context_frames: int
    delay_sec: float
    equal: list[float]
    mae: float
    offline_mae: float


def score_streaming(
    tokenizer: SpeechTokenizer, clips: Sequence[Clip], segment_frames: int, context_frames: int, track: Track
) -> StreamingRow:
    """Code the clips in segments, and as a whole."""
    log_mel = LogMel(tokenizer.decoder_mel_spec).to(device_of(tokenizer))
    encoder = StreamingEncoder(tokenizer, segment_frames, context_frames)
    equal_K, num_frames = torch.zeros(len(tokenizer.codebook_sizes)), 0
    error, offline_error = np.zeros(2), np.zeros(2)
    for clip in track(clips, f"segments of {segment_frames}, {context_frames} of context"):
        wav_N = torch.from_numpy(resample(clip.wav_N, clip.sample_rate_hz, tokenizer.sample_rate_hz))
        wav_BN, length_B = wav_N[None].to(device_of(tokenizer)), torch.tensor([len(wav_N)])
        length_B = length_B.to(wav_BN.device)
        pieces = [encoder.push(wav_N), encoder.flush()]
        streamed_BSK = torch.cat([piece.codes_BSK for piece in pieces], 1).to(wav_BN.device)
        offline = tokenizer.encode(wav_BN, length_B)
        streamed = Codes(codes_BSK=streamed_BSK, num_frames_B=offline.num_frames_B)
        equal_K += (streamed_BSK == offline.codes_BSK).sum((0, 1)).cpu()
        num_frames += offline.codes_BSK.shape[1]
        true_BMT, true_len_B = log_mel(wav_BN, length_B)
        bins_BM = clip.bins(tokenizer.decoder_mel_spec).to(true_BMT.device)
        for codes, sums in ((streamed, error), (offline, offline_error)):
            made = tokenizer.decode(codes)
            sums += mel_mae(made.refined_BMT, true_BMT, torch.minimum(made.mel_len_B, true_len_B), bins_BM)
    return StreamingRow(
        segment_frames=segment_frames,
        context_frames=context_frames,
        delay_sec=segment_frames / tokenizer.code_rate_hz,
        equal=(equal_K / max(1, num_frames)).tolist(),
        mae=float(error[0] / error[1]),
        offline_mae=float(offline_error[0] / offline_error[1]),
    )


def streaming_table(rows: Sequence[StreamingRow]) -> list[list[str]]:
    """Head and lines."""
    books = range(1, 1 + max((len(row.equal) for row in rows), default=0))
    head = [
        "segment / context, frames",
        "delay",
        "mel MAE",
        "offline",
        *(f"equal, book {book}" for book in books),
    ]
    lines = []
    for row in rows:
        numbers = [f"{row.delay_sec:.2f} s", f"{row.mae:.3f}", f"{row.offline_mae:.3f}"]
        equal = [f"{100 * share:.1f} %" for share in row.equal]
        lines.append([f"{row.segment_frames} / {row.context_frames}", *numbers, *equal])
    return [head, *lines]


@torch.inference_mode()
def _spoken(made: MelDecoderOutput, spec: MelSpec, vocoder: Vocoder) -> np.ndarray:
    """The refined mel of one item as a waveform at the vocoder's rate."""
    mel_BMT, mel_len_B = remel(made.refined_BMT, made.mel_len_B, spec, vocoder.mel_spec)
    wav_N: np.ndarray = vocoder(mel_BMT[..., : int(mel_len_B)])[0].float().cpu().numpy()
    return wav_N


def _add(row: DepthRow, name: str, clips: Sequence[Clip], heard: list[str]) -> None:
    row.heard[name], row.cer[name] = heard, cer_of(clips, heard)
    texts, languages = [clip.text for clip in clips], [clip.language for clip in clips]
    row.wer[name] = word_error_rate(texts, heard, languages).rate


def without_loops(rows: Sequence[DepthRow], clips: Sequence[Clip]) -> tuple[list[DepthRow], int]:
    """The judges' error rates again, without the clips on which one of them repeats itself at some depth.

    Returns:
        rows for ``table(..., rates_only=True)``, and the number of clips left out.
    """
    looping = {
        i for row in rows for name, heard in row.heard.items() if name != "LLM" for i in looped(clips, heard)
    }
    kept = [i for i in range(len(clips)) if i not in looping]
    again = []
    for row in rows:
        rest = DepthRow(depth=row.depth, mae=row.mae)
        for name, heard in row.heard.items():
            if name != "LLM" and kept:
                _add(rest, name, [clips[i] for i in kept], [heard[i] for i in kept])
        again.append(rest)
    return again, len(looping)


def load_reader(tokenizer: Path, llm: str | Path, text_tokenizer: str | Path, device: str) -> Reader | None:
    """The reader of a trained tokenizer.

    Args:
        tokenizer: ``<stage>/final/tokenizer``; ``<stage>/final/align`` stands beside it, the ids in the stage's
            config. None is returned for one that was trained without.
    """
    from omniaudio.config import build
    from omniaudio.training.artifacts import load_module

    align = tokenizer.parent / "align"
    if not align.is_dir():
        return None
    config = yaml.safe_load((tokenizer.parents[1] / "config.yaml").read_text("utf-8"))
    backbone: Any = load_module(llm, device)
    return Reader(
        llm=getattr(backbone, "backbone", backbone),
        align=load_module(align, device),
        text_tokenizer=TextTokenizer.from_file(text_tokenizer),
        space=build(config["task"]["token_space"], "task.token_space"),
        prompts=config["task"].get("prompts", False),
    )


def table(rows: Sequence[DepthRow], rates_only: bool = False) -> list[list[str]]:
    """Head and lines of the table, the most books first, as the paper has it.

    Args:
        rates_only: leave out what is not an error rate.
    """
    readers = list(dict.fromkeys(name for row in rows for name in row.cer))
    with_estoi = not rates_only and any(row.estoi is not None for row in rows)
    head = ["speech tokenizer", *([] if rates_only else ["mel MAE", "alignment, nats"])]
    head += [f"{rate} by {name}" for name in readers for rate in ("WER", "CER")]
    head += ["ESTOI"] * with_estoi
    lines = []
    for row in sorted(rows, key=lambda row: row.depth or len(rows) * 100, reverse=True):
        rates = [rate.get(name) for name in readers for rate in (row.wer, row.cer)]
        measures = [f"{row.mae:.3f}", "-" if row.align_loss is None else f"{row.align_loss:.3f}"]
        numbers = [] if rates_only else measures
        numbers += ["-" if rate is None else f"{100 * rate:.1f} %" for rate in rates]
        numbers += ["-" if row.estoi is None else f"{row.estoi:.3f}"] * with_estoi
        lines.append([row.name, *numbers])
    return [head, *lines]
