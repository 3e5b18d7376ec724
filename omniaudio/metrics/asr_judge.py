"""An independent recogniser that reads our speech: the ear of the evaluation.

A Whisper checkpoint (arXiv:2212.04356) by hub name or local folder. Its reading of a tokenizer whose encoder
began as a Whisper is not an independent judgment; the evaluation says so beside its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample

if TYPE_CHECKING:
    import torch

NO_JUDGE = "no judge"
"""What a table says where no judge was given."""

TOKENS, TOKENS_PER_SEC = 10, 8.0
"""What a judge may write of a clip, and of each second of it: no transcript of asterisk and fotaq (6,628) is longer.
A judge that hears noise repeats itself for ever, and its errors would count how long it was let."""


class AsrJudge:
    """Whisper through transformers: waveforms of a known language to text, in batches.

    Args:
        source: hub name or local folder of a Whisper checkpoint in Hugging Face form.
        device: torch device.
        dtype: "fp32" or "bf16".
        batch_size: waveforms at once; each is padded to 30 s by Whisper's own front end.
    """

    def __init__(self, source: str, device: str = "cpu", dtype: str = "fp32", batch_size: int = 4) -> None:
        self.source = source
        self.device = device
        self.dtype = _dtype(dtype)
        self.batch_size = batch_size
        self._model, self._processor = _load(source, self.dtype, device)
        self.sample_rate_hz: int = self._processor.feature_extractor.sampling_rate

    @property
    def name(self) -> str:
        """Last part of the source."""
        return Path(self.source).name

    def transcribe(
        self, wavs: Sequence[np.ndarray], sample_rate_hz: int, languages: Sequence[str]
    ) -> list[str]:
        """Waveforms (N,) float32 of at most 30 s to text, cut where nobody could have said so much.

        Args:
            wavs: mono, in [-1, 1].
            sample_rate_hz: their rate; resampled to the judge's.
            languages: ISO 639-1 of each, given to the judge (an English-only judge takes none).
        """
        assert len(wavs) == len(languages), (len(wavs), len(languages))
        texts: list[str] = []
        for start in range(0, len(wavs), self.batch_size):
            part = slice(start, start + self.batch_size)
            texts += self._batch(wavs[part], sample_rate_hz, languages[part])
        return texts

    def _batch(self, wavs: Sequence[np.ndarray], rate: int, languages: Sequence[str]) -> list[str]:
        import torch

        at_judge = [resample(np.asarray(wav, dtype=np.float32), rate, self.sample_rate_hz) for wav in wavs]
        features = self._processor(
            at_judge, sampling_rate=self.sample_rate_hz, return_tensors="pt", return_attention_mask=True
        ).to(self.device)
        asked: dict[str, Any] = {}
        if getattr(self._model.generation_config, "is_multilingual", False):
            asked = {"language": list(languages), "task": "transcribe"}
        most_B = [int(TOKENS + TOKENS_PER_SEC * len(wav) / self.sample_rate_hz) for wav in at_judge]
        with torch.inference_mode():
            ids_BL = self._model.generate(
                features["input_features"].to(self.dtype),
                attention_mask=features["attention_mask"],
                max_new_tokens=max(most_B),
                do_sample=False,
                num_beams=1,
                **asked,
            )
        special = set(self._processor.tokenizer.all_special_ids)
        written = [
            [i for i in ids_L if i not in special][:most]
            for ids_L, most in zip(ids_BL.tolist(), most_B, strict=True)
        ]
        return [text.strip() for text in self._processor.batch_decode(written, skip_special_tokens=True)]


def load_judge(source: str | None, device: str = "cpu", dtype: str = "fp32") -> AsrJudge | None:
    """The judge named in the config, or None where there is none: then tables say ``NO_JUDGE``, not a number."""
    return AsrJudge(str(source), device, dtype) if source else None


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name not in known:
        raise UserError(f"config judge_dtype: {name!r} is not one of {', '.join(known)}")
    return known[name]


def _load(source: str, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()  # a judge's own remarks do not belong between our progress bars
    logging.disable_progress_bar()
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise UserError(
            f"config asr_judge: folder {source} does not exist; give a Whisper folder or hub name"
        )
    where = str(Path(source).expanduser()) if source.startswith("~") else source
    try:
        processor = WhisperProcessor.from_pretrained(where)
        model = WhisperForConditionalGeneration.from_pretrained(where, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"config asr_judge: {source} cannot be loaded as a Whisper checkpoint ({reason})"
        ) from error
    return model.to(device).eval(), processor
