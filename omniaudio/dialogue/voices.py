"""Whether the model replies in the voice that it is asked for.

Held-out texts are read aloud in every voice that the training named. A speaker encoder says which of these voices each
reply is nearest to, as it does for held-out recordings of the voices, and for the same made again from their codes by
what decodes the replies: no reply can be expected to do better than these. Over all voices, replies of a model that is
deaf to the name are as similar to the right voice as to the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from omniaudio.data.prompts import to_read
from omniaudio.dialogue.evaluation import Clip, Track, choose_clips
from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.dialogue.replies import SpokenReply
from omniaudio.errors import UserError
from omniaudio.frontend.audio import resample
from omniaudio.metrics.records import Row
from omniaudio.metrics.voice import EXTRA, RATE_HZ, Voices

SECTION = "Replies in the voice that was asked for"
NUM_KNOWN = 20
"""Training recordings, at most, whose mean a voice is known by."""
RECORDED, REMADE, REPLIES = "held-out recordings", "the same made from their codes", "replies"

Sound = tuple[np.ndarray, int]
"""Waveform (N,) and its rate in Hz."""


def voice_rows(
    model: SpokenLanguageModel,
    shards_dir: str | Path,
    split: str,
    num_clips: int,
    track: Track,
    batch_size: int = 8,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """How many sounds are nearest to the right voice, how near they are, and every reply; nothing of fewer than two
    voices.

    Args:
        model: an export that names voices.
        shards_dir: with recordings of them in ``train``, which they are known by, and in ``split``.
        num_clips: held-out recordings of each voice. Each of their texts is read in all voices, with the same seed.
        batch_size: replies that are made together.
    """
    if len(model.settings.voices) < 2:
        return [], []
    if find_spec("resemblyzer") is None:
        return [Row(section=SECTION, name=REPLIES, value=None, text="not installed", note=EXTRA)], []
    try:
        train = clips_of_voices(model.settings.voices, shards_dir, "train", NUM_KNOWN)
        own = clips_of_voices(model.settings.voices, shards_dir, split, num_clips)
        names, ear = list(train), Ear()
        known_VD = np.stack([ear.mean(train[name]) for name in track(names, "voices")])
    except UserError as error:
        return [Row(section=SECTION, name=REPLIES, value=None, text="not measurable", note=str(error))], []
    spoken = [(name, clip) for name in names for clip in own[name]]
    asked = [(name, clip) for name in names for _, clip in spoken]
    seeds = list(range(len(spoken))) * len(names)
    replies = _replies(model, asked, seeds, track, batch_size)
    heard = {
        RECORDED: [ear((clip.wav_N, clip.sample_rate_hz)) for _, clip in spoken],
        REMADE: [ear(made_again(model, clip)) for _, clip in track(spoken, "recordings from their codes")],
        REPLIES: [ear((reply["wav"], reply["sample_rate_hz"])) for reply in replies],
    }
    rows = [_guess_row(len(names))]
    for what, vectors in heard.items():
        right = [names.index(name) for name, _ in (asked if what == REPLIES else spoken)]
        rows += _rows(what, names, right, [None if v is None else known_VD @ v for v in vectors])
    told = [
        {
            "asked": name, "key": clip.key, "expected": clip.text, "wrote": reply["text"],
            "similarity": None if v is None else dict(zip(names, map(float, known_VD @ v), strict=True)),
        }
        for (name, clip), reply, v in zip(asked, replies, heard[REPLIES], strict=True)
    ]  # fmt: skip
    return rows, told


def clips_of_voices(
    voices: Mapping[str, Sequence[str]], shards_dir: str | Path, split: str, num_clips: int
) -> dict[str, list[Clip]]:
    """Recordings of the speakers of each voice.

    Raises:
        UserError: there is none of some voice.
    """
    if not isinstance(voices, Mapping):
        raise UserError("the export does not know whose voices these are; export again")
    return {
        name: choose_clips(shards_dir, split, num_clips, speakers=labels) for name, labels in voices.items()
    }


def made_again(model: SpokenLanguageModel, clip: Clip) -> Sound:
    """A recording from its own codes, as replies are made of theirs."""
    return model.decode(model.encode(clip.wav_N, clip.sample_rate_hz)), model.sample_rate_hz


class Ear:
    """Sounds to vectors of their voices, of length 1."""

    def __init__(self) -> None:
        self.voices = Voices()

    def __call__(self, sound: tuple[np.ndarray | None, int]) -> np.ndarray | None:
        """(D,), or None without speech."""
        wav_N, rate_hz = sound
        return None if wav_N is None else self.voices(resample(wav_N, rate_hz, RATE_HZ))

    def mean(self, clips: Sequence[Clip]) -> np.ndarray:
        """(D,) of all recordings together.

        Raises:
            UserError: there is no speech in any.
        """
        vectors = [v for clip in clips if (v := self((clip.wav_N, clip.sample_rate_hz))) is not None]
        if not vectors:
            raise UserError(
                f"{clips[0].key} and {len(clips) - 1} more: no speech; are these recordings whole?"
            )
        mean_D: np.ndarray = np.mean(vectors, axis=0)
        return mean_D / np.linalg.norm(mean_D)


def _replies(
    model: SpokenLanguageModel,
    asked: Sequence[tuple[str, Clip]],
    seeds: Sequence[int],
    track: Track,
    batch_size: int,
) -> list[SpokenReply]:
    """The text of each clip, read in the voice beside it."""
    replies: list[SpokenReply] = []
    for start in track(range(0, len(asked), batch_size), "replies in voices"):
        part = slice(start, start + batch_size)
        chats = [[to_read(clip.text, clip.language)] for _, clip in asked[part]]
        replies += model.replies(chats, seeds=seeds[part], voice=[name for name, _ in asked[part]])
    return replies


def _guess_row(num_voices: int) -> Row:
    return Row(
        section=SECTION,
        name="nearest to the right voice, a guess",
        value=1 / num_voices,
        text=f"1 of {num_voices}",
        note="what replies get that are all in one voice",
    )


def _rows(
    what: str, names: Sequence[str], right: Sequence[int], similar: Sequence[np.ndarray | None]
) -> list[Row]:
    """Share of the sounds that are nearest to the right voice, and mean similarity to it and to the others.

    Args:
        right: number of the voice that each sound should have.
        similar: of each sound to every voice (V,); None without speech, which is not right.
    """
    found = [(voice, near_V) for voice, near_V in zip(right, similar, strict=True) if near_V is not None]
    good = [voice for voice, near_V in found if voice == near_V.argmax()]
    counts = ", ".join(f"{name} {good.count(i)} of {right.count(i)}" for i, name in enumerate(names))
    rows = [
        Row(
            section=SECTION,
            name=f"nearest to the right voice, {what}",
            value=len(good) / len(right),
            text=f"{len(good)} of {len(right)}",
            note=f"{counts}; {len(found)} have speech",
        )
    ]
    means = {
        "the right voice": [near_V[voice] for voice, near_V in found],
        "the other voices": [np.delete(near_V, voice).mean() for voice, near_V in found],
    }
    for whose, values in means.items():
        mean = float(np.mean(values)) if values else None
        rows.append(
            Row(
                section=SECTION,
                name=f"similarity to {whose}, {what}",
                value=mean,
                text="no speech" if mean is None else f"{mean:.3f}",
                note=f"cosine by Resemblyzer with the mean of up to {NUM_KNOWN} training recordings",
            )
        )
    return rows
