"""How loud sounds that are no speech come back from an exported model: python tools/odd_sounds.py FOLDER.

2 s each of silence, speech-like sound far into clipping, a tone of 100 Hz, white noise and music, all made here,
through mel and vocoder alone, and through codes by the tokenizer's refined mel and by flow matching. One thread.
The exit code is 1 if anything that comes out is not finite or beyond [-1, 1].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import omniaudio
from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.frontend.audio import read_audio_at

SECONDS = 2.0
CHORD_SEC = 0.5
CHORDS_HZ = ((261.6, 329.6, 392.0), (196.0, 246.9, 293.7), (220.0, 261.6, 329.6), (174.6, 220.0, 261.6))
"""C, G, A minor, F."""


def sounds(rate_hz: int, seconds: float = SECONDS) -> dict[str, np.ndarray]:
    """Name to wav_N, float32 in [-1, 1]."""
    time_N = np.arange(round(seconds * rate_hz)) / rate_hz
    noise_N = np.random.default_rng(0).standard_normal(len(time_N))
    made = {
        "silence": np.zeros_like(time_N),
        "clipping": (10 * speech_like(time_N, noise_N)).clip(-1, 1),
        "tone of 100 Hz": 0.5 * np.sin(2 * np.pi * 100 * time_N),
        "white noise": (0.3 * noise_N).clip(-1, 1),
        "music": music(time_N),
    }
    return {name: wav_N.astype(np.float32) for name, wav_N in made.items()}


def speech_like(time_N: np.ndarray, noise_N: np.ndarray) -> np.ndarray:
    """Harmonics of a voice that rises and falls, and breath, four syllables a second; peak near 1."""
    turns_N = 140 * time_N - 20 * np.cos(2 * np.pi * time_N) / (2 * np.pi)
    voice_N = np.sum([np.sin(2 * np.pi * k * turns_N) / k for k in range(1, 20)], axis=0)
    return 0.5 * np.sin(4 * np.pi * time_N) ** 2 * (voice_N + 0.1 * noise_N)


def music(time_N: np.ndarray) -> np.ndarray:
    """Chords of three notes with eight harmonics each, struck together and dying away, the higher ones sooner."""
    struck_N = time_N % CHORD_SEC
    notes_3N = np.array(CHORDS_HZ).T[:, (time_N // CHORD_SEC).astype(int) % len(CHORDS_HZ)]
    partials = [
        np.sin(2 * np.pi * k * notes_3N * struck_N) / k * np.exp(-(2 + k) * struck_N) for k in range(1, 9)
    ]
    wav_N = np.sum(partials, axis=(0, 1))
    return 0.8 * wav_N / np.abs(wav_N).max()


def back(model: SpokenLanguageModel, wav_N: np.ndarray) -> dict[str, np.ndarray]:
    """A sound at the model's rate as it comes back, by the way it went."""
    codes = model.encode(wav_N, model.sample_rate_hz)
    return {
        "copy synthesis": model.copy_synthesis(wav_N, model.sample_rate_hz),
        "refined mel": model.decode(codes, path="refined"),
        "flow": model.decode(codes, path="flow"),
    }


def level(wav_N: np.ndarray) -> str:
    return f"{np.sqrt(np.square(wav_N, dtype=np.float64).mean()):.4f} / {np.abs(wav_N).max():.3f}"


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a sound came back broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="what `omniaudio export` wrote")
    parser.add_argument(
        "--speech", nargs="+", default=[], help="recordings to hold the sounds against, a row each"
    )
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    model = omniaudio.load(given.folder)
    rows = sounds(model.sample_rate_hz)
    rows |= {Path(path).stem: read_audio_at(path, model.sample_rate_hz) for path in given.speech}
    failed = False
    for number, (name, wav_N) in enumerate(rows.items()):
        ways = back(model, wav_N)
        sound = all(np.abs(out_N).max() <= 1 for out_N in ways.values())  # not a number fails too
        failed |= not sound
        if number == 0:
            head = ["rms / peak", "in", *ways, "finite, within [-1, 1]"]
            print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|")
        cells = [name, level(wav_N), *map(level, ways.values()), "yes" if sound else "no"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
