"""A source and a step that need no model: words as tones."""

from dataclasses import replace

from omniaudio.corpus.build.segment import Segment
from tests.corpus.make_audio import RATE_HZ, tone

LEVELS = {"two": 0.5, "three": 0.7}


class Mumbler:
    """Every word is a segment, and says of which passage."""

    def __call__(self, source):
        key = source["key"]
        return [
            Segment(key=f"{key}/{i:04d}", passage=key, place=i, text=f"{word} of {key}", language="en")
            for i, word in enumerate(source["words"])
        ]

    def attribution(self):
        return "mumbled"


class Mumble:
    """Tones as loud as the word is long; "one" has no sound."""

    def __call__(self, segments):
        return [self.spoken(segment) for segment in segments]

    @staticmethod
    def spoken(segment):
        word = segment.text.split()[0]
        if word not in LEVELS:
            return segment.refused("synthesis: no sound", "tts")
        wav_N = tone(0.2, LEVELS[word])
        return replace(segment, wav_N=wav_N, rate_hz=RATE_HZ, speaker=f"v{len(word)}").scored(
            level=LEVELS[word]
        )
