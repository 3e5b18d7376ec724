"""What crosses a border between packages. Every field has a shape and a unit.

Shape suffixes, the same in the whole project: B batch, N samples, T mel frames (or encoder and
decoder frames at 50 Hz), S code frames (12.5 Hz), L LLM positions, M mel bins, D width, H heads,
K codebooks, V vocabulary. ``x_len_B`` counts the valid steps of each row of ``x``; ``valid_BT`` is
True where a step is valid.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # `import omniaudio` must not import torch
    import torch
    from torch import Tensor

NO_LABEL = -100
"""Target at positions without a loss (torch's ``ignore_index``)."""

BatchT = TypeVar("BatchT", bound="Batch")


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest: a recorded utterance and what is known of it."""

    key: str  # unique in its corpus; letters, digits, '-', '_' and '/': never '.', it ends a shard member's key
    audio_path: str  # relative to the manifest's folder, or absolute
    sample_rate_hz: int
    num_samples: int
    text: str  # the transcript as written
    language: str  # ISO 639-1
    speaker: str
    corpus: str
    band_hz: int = 0  # highest frequency with sound, where it lies below half the sample rate
    response: str = ""  # what was said to it
    continuation: str = ""  # text of the clip that follows in the same passage
    translation: str = ""  # in English
    chat: str = ""  # its place in a chat, as json: omniaudio.data.chats
    built: str = ""  # what else a build knows of it, as json: omniaudio.corpus.from_shards
    start_sec: float = 0.0  # where it lies in the file
    channel: int = -1  # of the file; -1: its only one, or the mean of all

    @property
    def duration_sec(self) -> float:
        return self.num_samples / self.sample_rate_hz


@dataclass(kw_only=True)
class Batch:
    """Base of all batches: knows its samples' keys (for error messages) and how to move its tensors."""

    keys: list[str]
    memo: dict[str, Any] | None = None  # where its plan stood, for a checkpoint (ChapteredPlan.memo)
    damaged: list[str] = field(default_factory=list)  # a line for each planned sample that was left out of it
    later: list[Batch] = field(default_factory=list)  # of a step's first batch: this rank's others

    def to(self: BatchT, device: Any, non_blocking: bool = False) -> BatchT:
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in dataclasses.fields(self)
            if hasattr(value := getattr(self, f.name), "to")
        }
        return dataclasses.replace(self, **moved)


@dataclass(kw_only=True)
class WaveBatch(Batch):
    """Waveforms with what is to be written of them, zero-padded to the longest."""

    wav_BN: Tensor  # float32 in [-1, 1] at sample_rate_hz
    num_samples_B: Tensor  # int64
    sample_rate_hz: int
    kinds: list[str]  # what is asked in writing: asr, aqa, s2tt, intlv
    texts: list[str]  # the answer; "" where a crop does not hold the whole clip
    languages: list[str]  # of the speech
    band_hz_B: Tensor | None = None  # float, highest frequency with sound; None: up to half the sample rate


@dataclass(kw_only=True)
class CodesWaveBatch(WaveBatch):
    """Waveforms with the codes that the frozen tokenizer gave them (flow matching)."""

    codes: Codes


@dataclass(kw_only=True)
class PackedBatch(Batch):
    """Documents of an LLM laid one after the other in a single row: no padding at all.

    Attention and positions stay inside a document; ``doc_len_G`` cuts the row (its sum is L).
    """

    ids_L: Tensor  # int64; TokenSpace.audio_pad where a frame of codes stands
    codes_LK: Tensor  # int64; codes of the frame at audio_pad positions, 0 elsewhere
    text_label_L: Tensor  # int64; the next id that the hidden state here must predict, or NO_LABEL
    audio_label_LK: Tensor  # int64; the next frame's codes (book size = end of audio), or NO_LABEL
    doc_len_G: Tensor  # int64, one entry a document
    kinds: list[str]  # one entry a document: asr, tts, intlv, itts, audio, text, sft, ...


@dataclass(kw_only=True)
class Codes:
    """Discrete speech: what the tokenizer writes and the LLM reads."""

    codes_BSK: Tensor  # int64, code of book k in [0, codebook_sizes[k]); -1 at padding
    num_frames_B: Tensor  # int64

    def to(self, device: Any, non_blocking: bool = False) -> Codes:
        return Codes(
            codes_BSK=self.codes_BSK.to(device, non_blocking=non_blocking),
            num_frames_B=self.num_frames_B.to(device, non_blocking=non_blocking),
        )


@dataclass(kw_only=True)
class QuantizerOutput:
    """What every quantizer returns."""

    quantized_BSD: Tensor  # sum of the chosen entries; straight-through in training
    codes_BSK: Tensor  # int64, -1 at padding
    commit_loss: Tensor  # scalar: sum over valid frames / their count, mean over width
    stats: dict[str, Tensor] = field(
        default_factory=dict
    )  # 'usage/book0', 'perplexity/book0', 'error/book0', ...


@dataclass(kw_only=True)
class MelDecoderOutput:
    """Decoder side of the tokenizer."""

    coarse_BMT: Tensor  # log-mel at the decoder's MelSpec
    refined_BMT: Tensor
    mel_len_B: Tensor
    hidden_BTD: Tensor  # states before the last deconvolution, 50 Hz: input of flow matching
    hidden_len_B: Tensor


@dataclass(kw_only=True)
class LMOutput:
    """Forward of the audio LLM over a PackedBatch."""

    hidden_LD: Tensor  # final hidden states of all positions
    text_loss_L: Tensor | None = None  # cross-entropy where text_label_L is set, 0 elsewhere
    audio_loss_LK: Tensor | None = None  # the same per book


def valid_steps(length_B: Tensor, num_steps: int) -> Tensor:
    """Lengths to a boolean (B, num_steps) that is True inside each row's length."""
    import torch

    return torch.arange(num_steps, device=length_B.device)[None, :] < length_B[:, None]


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether ZeRO 3 holds pieces of a module's parameters: to use it is a collective."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def device_of(module: torch.nn.Module) -> torch.device:
    """Device of a module's first parameter or buffer (modules of one process live on one device)."""
    import itertools

    import torch

    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")
