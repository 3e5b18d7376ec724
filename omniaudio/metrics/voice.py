"""Whose voice it is, and how good it sounds, as small networks hear it whose weights come with their packages."""

from __future__ import annotations

import functools
import io
import math
import sys
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

import numpy as np

from omniaudio.errors import UserError

RATE_HZ = 16_000
EXTRA = "pip install 'omniaudio[metrics]', or [corpora]"
DISTILLMOS = "pip install --no-deps distillmos xls-r-sqa"
"""Of no extra: both ask for torchaudio, and one that does not load beside torch's CPU build breaks transformers."""


def load_voice_encoder(device: str = "cpu") -> Any:
    """Resemblyzer's speaker encoder.

    Raises:
        UserError: the package is not there.
    """
    try:
        from resemblyzer import VoiceEncoder
    except ModuleNotFoundError as error:
        raise UserError(f"voices are compared with Resemblyzer, which is not installed: {EXTRA}") from error
    return VoiceEncoder(device, verbose=False)


class Voices:
    """Embeds voices, as Resemblyzer does it: loudness evened out, long pauses cut (arXiv:1710.10467)."""

    _encoder: Any = None

    def __call__(self, wav_N: np.ndarray) -> np.ndarray | None:
        """A signal at 16 kHz to a vector of length 1; None if there is no speech in it."""
        self._encoder = self._encoder or load_voice_encoder()
        from resemblyzer import preprocess_wav

        if not np.any(wav_N):
            return None
        speech_N = preprocess_wav(wav_N)
        if not len(speech_N):
            return None
        voice_D: np.ndarray = self._encoder.embed_utterance(speech_N)
        return voice_D


def similarity(true_D: np.ndarray, made_D: np.ndarray) -> float:
    """Cosine of two voices of length 1."""
    return float(true_D @ made_D)


def opinion(wav_N: np.ndarray) -> float | None:
    """The overall opinion score, 1 to 5, that DNSMOS P.835 predicts (arXiv:2110.01763), by speechmos.

    Args:
        wav_N: a signal at 16 kHz; silence gives None.

    Raises:
        UserError: the package is not there.
    """
    try:
        from speechmos import dnsmos
    except ModuleNotFoundError as error:
        raise UserError(
            f"opinion scores are predicted by speechmos, which is not installed: {EXTRA}"
        ) from error
    if not np.any(wav_N):  # the package would repeat nothing for ever
        return None
    return float(dnsmos.run(np.clip(wav_N, -1, 1), sr=RATE_HZ)["ovrl_mos"])


def distillmos() -> ModuleType:
    """The network and sizes of Distill-MOS, as its package has them.

    Raises:
        UserError: the package is not there.
    """
    known = "torchaudio" in sys.modules
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # which its command line alone would use
    try:
        from distillmos import sqa
    except ModuleNotFoundError as error:
        raise UserError(f"DistillMOS needs a package that is not installed: {DISTILLMOS}") from error
    finally:
        if not known:
            del sys.modules["torchaudio"]
    return sqa


@functools.cache
def load_distillmos() -> Any:
    """The trained network, on the CPU; once a process.

    Raises:
        UserError: the package is not there.
    """
    package = distillmos()
    with redirect_stdout(io.StringIO()):  # it prints where its weights are
        return package.ConvTransformerSQAModel().eval()


def distilled_opinion(wav_N: np.ndarray) -> float | None:
    """The opinion score, 1 to 5, that Distill-MOS predicts: a small network taught by one on XLS-R (arXiv:2502.05356).

    The mean over windows of 7.68 s, at most 1 s apart, as in the package; one at a time, so that no clip is too long.

    Args:
        wav_N: a signal at 16 kHz; silence gives None.

    Raises:
        UserError: the package is not there.
    """
    import torch

    network, package = load_distillmos(), distillmos()
    if not np.any(wav_N):
        return None
    wav_BN = torch.as_tensor(wav_N, dtype=torch.float32)[None]
    rest = max(0, wav_BN.shape[1] - package.SEQ_LEN)
    num_windows = math.ceil(rest / package.MAX_HOP_LEN) + 1
    begins = [int(part * rest) for part in np.linspace(0, 1, num_windows)]
    with torch.inference_mode():
        scores = [network(wav_BN[:, begin : begin + package.SEQ_LEN]).item() for begin in begins]
    return float(np.mean(scores))
