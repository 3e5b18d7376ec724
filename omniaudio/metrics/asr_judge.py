"""An independent recogniser that reads our speech: the ear of the evaluation.

A Whisper checkpoint (arXiv:2212.04356) by hub name or local folder. Its reading of a tokenizer whose encoder
began as a Whisper is not an independent judgment; the evaluation says so beside its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.frontend.text import UNSPACED_LANGUAGES

if TYPE_CHECKING:
    import torch

NO_JUDGE = "no judge"
"""What a table says where no judge was given."""

TOKENS, TOKENS_PER_SEC = 10, 8.0
"""What a judge may write of a clip, and of each second of it: no transcript of asterisk and fotaq (6,628) is longer.
A judge that hears noise repeats itself for ever, and its errors would count how long it was let."""


TimedWord = tuple[str, float, float]
"""A word, with start and end in seconds."""


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
        return self._read(wavs, sample_rate_hz, languages, None)[0]

    def transcribe_and_align(
        self, wavs: Sequence[np.ndarray], sample_rate_hz: int, languages: Sequence[str], texts: Sequence[str]
    ) -> tuple[list[str], list[list[TimedWord]]]:
        """As ``transcribe``, and when the words of texts that are known were said; the encoder hears all once.

        Args:
            texts: what is said in each waveform.

        Returns:
            What the judge writes; and of each text (word, start, end) in seconds, a word with the space before it:
            joined they are the text. None where the text is longer than the decoder.

        Raises:
            UserError: the judge does not know a language, or which of its heads listen to the word at hand.
        """
        assert len(wavs) == len(texts), (len(wavs), len(texts))
        return self._read(wavs, sample_rate_hz, languages, texts)

    def _read(
        self,
        wavs: Sequence[np.ndarray],
        rate: int,
        languages: Sequence[str],
        known: Sequence[str] | None,
    ) -> tuple[list[str], list[list[TimedWord]]]:
        import torch

        assert len(wavs) == len(languages), (len(wavs), len(languages))
        for language in dict.fromkeys(languages):
            self._check(language)
        texts: list[str] = []
        words: list[list[TimedWord]] = []
        for start in range(0, len(wavs), self.batch_size):
            part = slice(start, start + self.batch_size)
            at_judge = [
                resample(np.asarray(wav, dtype=np.float32), rate, self.sample_rate_hz) for wav in wavs[part]
            ]
            features = self._processor(
                at_judge, sampling_rate=self.sample_rate_hz, return_tensors="pt", return_attention_mask=True
            ).to(self.device)
            with torch.inference_mode():
                heard = self._model.get_encoder()(features["input_features"].to(self.dtype))
                seconds = [len(wav) / self.sample_rate_hz for wav in at_judge]
                texts += self._written(heard, features["attention_mask"], seconds, languages[part])
                for i, text in enumerate(known[part] if known is not None else []):
                    states = type(heard)(last_hidden_state=heard.last_hidden_state[i : i + 1])
                    frames = int(features["attention_mask"][i].sum())
                    words.append(self._aligned(states, frames, seconds[i], text, languages[start + i]))
        return texts, words

    def _written(
        self, heard: Any, attention_mask: torch.Tensor, seconds: Sequence[float], languages: Sequence[str]
    ) -> list[str]:
        asked: dict[str, Any] = {}
        if self._is_multilingual:
            asked = {"language": list(languages), "task": "transcribe"}
        most_B = [int(TOKENS + TOKENS_PER_SEC * length) for length in seconds]
        ids_BL = self._model.generate(
            encoder_outputs=heard,
            attention_mask=attention_mask,
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

    def _aligned(
        self, heard: Any, num_frames: int, seconds: float, text: str, language: str
    ) -> list[TimedWord]:
        """The decoder reads the text that is known; the heads of its cross-attention that follow the sound tell where
        it listens for each token (arXiv:2212.04356, and dynamic time warping as in its own code)."""
        import torch
        from transformers.generation.utils import GenerateEncoderDecoderOutput

        if not hasattr(self._model.generation_config, "alignment_heads"):
            raise UserError(
                f"config recogniser: {self.source} has no alignment_heads; times need a Whisper that has"
            )
        spaced = language not in UNSPACED_LANGUAGES
        tokens = self._processor.tokenizer.encode(" " * spaced + text.strip(), add_special_tokens=False)
        first = self._prefix(language)
        if not text.strip() or len(first) + len(tokens) > self._model.config.max_target_positions:
            return []
        ids_1L = torch.tensor([first + tokens], device=self.device)
        usual = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")  # others do not tell where they listen
        try:
            read = self._model(
                encoder_outputs=heard, decoder_input_ids=ids_1L, output_attentions=True, use_cache=False
            )
        finally:
            self._model.set_attn_implementation(usual)
        found = GenerateEncoderDecoderOutput(sequences=ids_1L, cross_attentions=(read.cross_attentions,))
        times = self._model._extract_token_timestamps(
            found,
            self._model.generation_config.alignment_heads,
            num_frames=num_frames,
            num_input_ids=len(first) - 1,
        )[0]  # of the last token before the text, which listens for its first one, and so on
        starts = [min(float(at), seconds) for at in times[len(first) - 1 :]]
        return words_of(self._pieces(tokens, starts), starts[len(tokens)], spaced)

    def _check(self, language: str) -> None:
        if self._is_multilingual and f"<|{language}|>" not in self._model.generation_config.lang_to_id:
            raise UserError(f"{self.source}: does not know the language {language!r}")

    def _prefix(self, language: str) -> list[int]:
        """Ids before a text without times."""
        settings = self._model.generation_config
        first = [int(self._model.config.decoder_start_token_id)]
        if self._is_multilingual:
            self._check(language)
            first += [settings.lang_to_id[f"<|{language}|>"], settings.task_to_id["transcribe"]]
        return [*first, int(settings.no_timestamps_token_id)]

    def _pieces(self, ids: Sequence[int], starts: Sequence[float]) -> list[tuple[str, float]]:
        """Texts of tokens and when they begin; tokens that are one letter together are one piece."""
        pieces: list[tuple[str, float]] = []
        letter: list[int] = []
        begin = 0.0
        for token_id, at in zip(ids, starts, strict=False):
            begin = at if not letter else begin  # of its first token
            letter.append(token_id)
            text = self._processor.tokenizer.decode(letter, clean_up_tokenization_spaces=False)
            if "\ufffd" not in text:
                pieces.append((text, begin))
                letter = []
        return pieces

    @property
    def _is_multilingual(self) -> bool:
        return bool(getattr(self._model.generation_config, "is_multilingual", False))

    def timed_words(
        self, wav_N: np.ndarray, sample_rate_hz: int, language: str
    ) -> tuple[list[TimedWord], float]:
        """Words of a waveform of at most 30 s, and how sure the judge is of them.

        Args:
            wav_N: mono, in [-1, 1].
            sample_rate_hz: its rate; resampled to the judge's.
            language: ISO 639-1.

        Returns:
            (word, start, end) in seconds, a word with the space before it; and exp of the mean log probability of
            its tokens, in [0, 1].

        Raises:
            UserError: the judge knows one language alone, or does not know this one.
        """
        import torch

        wav_N = resample(wav_N, sample_rate_hz, self.sample_rate_hz)
        seconds, tokenizer = len(wav_N) / self.sample_rate_hz, self._processor.tokenizer
        features = self._processor(
            wav_N, sampling_rate=self.sample_rate_hz, return_tensors="pt", return_attention_mask=True
        ).to(self.device)
        if not self._is_multilingual:
            raise UserError(
                f"config recogniser: {self.source} is English only; times need a multilingual Whisper"
            )
        try:
            with torch.inference_mode():
                found = self._model.generate(
                    features["input_features"].to(self.dtype), attention_mask=features["attention_mask"],
                    language=language, task="transcribe", do_sample=False, num_beams=1, return_timestamps=True,
                    return_token_timestamps=True, return_dict_in_generate=True, output_scores=True,
                    max_new_tokens=int(TOKENS + TOKENS_PER_SEC * seconds),
                )  # fmt: skip
        except ValueError as error:
            if "language" not in str(error).lower():
                raise
            raise UserError(f"{self.source}: does not know the language {language!r}") from error
        first_time = tokenizer.convert_tokens_to_ids("<|0.00|>")
        ids, ends = found["sequences"][0].tolist(), found["token_timestamps"][0].tolist()
        starts = [
            min(float(at), seconds) for at in (0.0, *ends[:-1])
        ]  # transformers tell where each token ends
        spoken = [i not in tokenizer.all_special_ids and i < first_time for i in ids]
        pieces = self._pieces(list(compress(ids, spoken)), list(compress(starts, spoken)))
        windows = {id(part["result"]): part["result"]["scores"] for part in found["segments"][0]}
        logs = [
            float(torch.log_softmax(score.reshape(-1).float(), -1).max())
            for scores in windows.values()
            for score in scores
        ]
        return words_of(pieces, seconds, language not in UNSPACED_LANGUAGES), float(
            np.exp(np.mean(logs))
        ) if logs else 0.0


def load_judge(source: str | None, device: str = "cpu", dtype: str = "fp32") -> AsrJudge | None:
    """The judge named in the config, or None where there is none: then tables say ``NO_JUDGE``, not a number."""
    return AsrJudge(str(source), device, dtype) if source else None


def words_of(pieces: Sequence[tuple[str, float]], seconds: float, spaced: bool) -> list[TimedWord]:
    """Tokens to words: a new one begins with a space, or with every piece where the language writes none (spaced)."""
    words: list[TimedWord] = []
    ends = [at for _, at in pieces[1:]] + [seconds] * bool(pieces)
    for (piece, start), end in zip(pieces, ends, strict=True):
        if words and spaced and not piece.startswith(" "):
            words[-1] = (words[-1][0] + piece, words[-1][1], max(end, words[-1][1]))
        else:
            words.append((piece, start, max(start, end)))
    return words


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
