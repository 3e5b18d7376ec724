"""Text to speech with a bank of voices: espeak-ng on this machine, or any engine that answers over HTTP."""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from omniaudio.corpus.build.segment import Segment
from omniaudio.errors import UserError
from omniaudio.frontend.audio import read_audio_at, resample


@dataclass(frozen=True)
class Voice:
    """A voice of an engine, and how it speaks."""

    name: str
    settings: Mapping[str, float]

    @property
    def label(self) -> str:
        """Name and settings in one word, for facts and reports."""
        return "_".join([self.name, *(f"{key}{value:g}" for key, value in sorted(self.settings.items()))])


class Engine(Protocol):
    """What speaks."""

    def voices(self, language: str) -> list[Voice]:
        """All voices of a language, in a fixed order."""
        ...

    def speak(self, text: str, voice: Voice, language: str, rate_hz: int) -> np.ndarray:
        """wav_N; raises SynthesisError for a text that it cannot speak."""
        ...


class SynthesisError(Exception):
    """An engine gave no speech for a text."""


class Synthesise:
    """Gives every segment a voice; one voice a passage, or a role of a chat, drawn by their names.

    A segment that the engine does not speak goes to the set of texts that need a better one (tts).

    Args:
        engine: what speaks.
        sample_rate_hz: of the speech.
        voices: role of a chat -> label of the voice that always says it.
    """

    def __init__(
        self, engine: Engine, sample_rate_hz: int = 16_000, voices: Mapping[str, str] | None = None
    ) -> None:
        self.engine, self.sample_rate_hz, self.fixed = engine, sample_rate_hz, dict(voices or {})

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        return [self._spoken(segment) for segment in segments]

    def _spoken(self, segment: Segment) -> Segment:
        voices = self.engine.voices(segment.language)
        if not voices:
            return segment.refused(f"synthesis: no voice for {segment.language!r}", "tts")
        voice = self._voice(segment, voices)
        try:
            wav_N = self.engine.speak(
                segment.spoken or segment.text, voice, segment.language, self.sample_rate_hz
            )
        except SynthesisError as error:
            return segment.refused(f"synthesis: {error}", "tts")
        if not len(wav_N) or not np.isfinite(wav_N).all() or not np.abs(wav_N).max() > 0:
            return segment.refused("synthesis: no sound", "tts")
        return replace(segment, wav_N=wav_N, rate_hz=self.sample_rate_hz, speaker=voice.label)

    def _voice(self, segment: Segment, voices: Sequence[Voice]) -> Voice:
        label = self.fixed.get(segment.role)
        if label is None:
            return _drawn(segment.passage + (f"/{segment.role}" if segment.role else ""), voices)
        for voice in voices:
            if voice.label == label:
                return voice
        known = ", ".join(voice.label for voice in voices[:3])
        raise UserError(
            f"synthesise.voices.{segment.role}: no voice {label!r} for {segment.language!r} ({known}, ...)"
        )


def _drawn(name: str, voices: Sequence[Voice]) -> Voice:
    return voices[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % len(voices)]


ESPEAK_VOICES = {
    "en": ("en-us", "en", "en-gb-scotland", "en-029"),
    "zh": ("cmn",),
    "pt": ("pt", "pt-br"),
    "es": ("es", "es-419"),
}
SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
RATE, PITCH = 1, 3


class EspeakNg:
    """espeak-ng, which speaks about a hundred languages by rule, in this process and without network.

    What it says depends on all that it said before (counters, a wavering pitch). So the library is loaded anew for
    every text, which takes ten milliseconds: the same text and voice give the same samples, whatever came before.

    Args:
        variants: its voices' timbres.
        rates: words a minute.
        pitches: 0 to 99.
        names: language -> its own voices to speak with; null, and languages that are not named, take all accents.
        libraries: path of the shared library and of its data; null takes those of the package espeakng-loader.
    """

    def __init__(
        self,
        variants: Sequence[str] = ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7"),
        rates: Sequence[int] = (140, 165, 190),
        pitches: Sequence[int] = (35, 50, 65),
        names: Mapping[str, Sequence[str]] | None = None,
        libraries: Sequence[str] | None = None,
    ) -> None:
        self.variants, self.rates, self.pitches = tuple(variants), tuple(rates), tuple(pitches)
        self.names = {**ESPEAK_VOICES, **(names or {})}
        self.libraries = tuple(libraries) if libraries else None
        self._voices: dict[str, list[Voice]] = {}

    def voices(self, language: str) -> list[Voice]:
        if language not in self._voices:
            self._voices[language] = [
                Voice(f"{name}+{variant}", {"rate": rate, "pitch": pitch})
                for name in self.names.get(language, (language,))
                if self._knows(name)
                for variant in self.variants
                for rate in self.rates
                for pitch in self.pitches
            ]
        return self._voices[language]

    def speak(self, text: str, voice: Voice, language: str, rate_hz: int) -> np.ndarray:
        pieces: list[np.ndarray] = []

        def take(samples: Any, number: int, events: Any) -> int:
            if samples and number > 0:
                pieces.append(np.ctypeslib.as_array(samples, (number,)).copy())
            return 0

        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )(take)
        with self._loaded() as (library, found_hz):
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(voice.name.encode()):
                raise SynthesisError(f"voice {voice.name} is unknown")
            library.espeak_SetParameter(RATE, int(voice.settings["rate"]), 0)
            library.espeak_SetParameter(PITCH, int(voice.settings["pitch"]), 0)
            content = text.encode() + b"\0"
            failed = library.espeak_Synth(content, len(content), 0, 0, 0, UTF8, None, None)
            if failed or library.espeak_Synchronize() or not pieces or not text.strip():
                raise SynthesisError("no sound")
        return resample(np.concatenate(pieces).astype(np.float32) / 32768, found_hz, rate_hz)

    def _knows(self, name: str) -> bool:
        with self._loaded() as (library, _):
            return int(library.espeak_SetVoiceByName(name.encode())) == 0

    @contextmanager
    def _loaded(self) -> Iterator[tuple[Any, int]]:
        """The library in its first state, and its sample rate."""
        library_path, data_path = self.libraries or _packaged()
        library = ctypes.CDLL(str(library_path))
        try:
            rate_hz = int(library.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data_path), DO_NOT_EXIT))
            if rate_hz <= 0:
                raise UserError(f"espeak-ng: its data are not in {data_path}")
            if hasattr(library, "espeak_ng_SetRandSeed"):  # it seeds its noises with the time
                library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            yield library, rate_hz
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)


def _packaged() -> tuple[str, str]:
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        raise UserError("espeak-ng is not installed: pip install -e .[corpora]") from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


ABOUT_THE_TEXT = (400, 413, 422)
"""Answers that refuse a text; others refuse whoever asks."""
PLAIN = "one"
"""A text that every engine speaks: who refuses it refuses the form of the request."""
FORMS = {"json": "application/json", "form": "application/x-www-form-urlencoded"}
ANSWERS = ("file", "pcm16")


class HttpEngine:
    """Any engine behind an address: a request with text and voice, sound back.

    Args:
        url: of the request.
        names: of its voices.
        body: fields of a request; ``{text}``, ``{voice}`` and ``{language}`` stand for theirs.
        headers: of the request.
        timeout_sec: for an answer.
        tries: of one request; an engine that is busy is asked again, after 1, 2, 4 ... seconds.
        form: how the fields are sent: json, or form (as a browser does).
        answer: file (any audio file), or pcm16 (samples of one channel, 16 bits, little end first).
        rate_hz: of pcm16, which does not tell.
    """

    def __init__(
        self,
        url: str,
        names: Sequence[str],
        body: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        timeout_sec: float = 60.0,
        tries: int = 4,
        form: str = "json",
        answer: str = "file",
        rate_hz: int | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"engine.url {url!r}: an address beginning with http:// or https:// is expected")
        if bad := [key for key, value in body.items() if isinstance(value, dict | list)]:
            raise UserError(f"engine.body.{bad[0]}: a text or a number is expected")
        for name, value, known in (("form", form, tuple(FORMS)), ("answer", answer, ANSWERS)):
            if value not in known:
                raise UserError(f"engine.{name} {value!r}: one of {', '.join(known)} is expected")
        if (answer == "pcm16") != bool(rate_hz):
            raise UserError(
                f"engine.rate_hz {rate_hz}: answer=pcm16 needs the rate of the samples, a file tells its own"
            )
        self.url, self.names, self.body = url, tuple(names), dict(body)
        self.form, self.rate_hz = form, rate_hz
        self.headers = {"Content-Type": FORMS[form], **(headers or {})}
        self.timeout_sec, self.tries = timeout_sec, tries
        self._answered = False

    def voices(self, language: str) -> list[Voice]:
        return [Voice(name, {}) for name in self.names]

    def speak(self, text: str, voice: Voice, language: str, rate_hz: int) -> np.ndarray:
        try:
            return self._sound(self._asked(text, voice, language), rate_hz)
        except urllib.error.HTTPError as error:
            if not self._answered:
                self._try_plain(voice, language)
            raise SynthesisError(f"the engine refuses ({error.code})") from error

    def _try_plain(self, voice: Voice, language: str) -> None:
        """An engine that never answered and refuses a plain word, too, is asked in a wrong way: a UserError."""
        try:
            self._asked(PLAIN, voice, language)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(200).decode("utf-8", "replace").split())
            raise UserError(
                f"engine.url {self.url}: refuses the first request ({error.code} {error.reason}; {said or 'no more'}); "
                "see engine.form, engine.body and engine.names"
            ) from error

    def _asked(self, text: str, voice: Voice, language: str) -> bytes:
        """The answer; an HTTPError where the engine refuses the text."""
        known = {"{text}": text, "{voice}": voice.name, "{language}": language}
        fields = {key: known.get(value, value) for key, value in self.body.items()}
        body = json.dumps(fields) if self.form == "json" else urllib.parse.urlencode(fields)
        request = urllib.request.Request(self.url, body.encode(), self.headers, method="POST")
        for number in range(self.tries):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_sec) as answer:
                    content: bytes = answer.read()
                self._answered = True
                return content
            except urllib.error.HTTPError as error:
                if error.code in ABOUT_THE_TEXT:
                    raise
                if error.code < 500 and error.code != 429:
                    raise UserError(f"engine.url {self.url}: {error.code} {error.reason}") from error
                reason = f"{error.code} {error.reason}"
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error))
            if number + 1 < self.tries:
                time.sleep(2**number)
        if self._answered and text != PLAIN:  # the engine may be well, and this text break it
            self._asked(PLAIN, voice, language)
            raise SynthesisError(f"the engine fails: {reason}")
        raise UserError(
            f"engine.url {self.url}: {reason}, {self.tries} times; the same command goes on from here"
        )

    def _sound(self, content: bytes, rate_hz: int) -> np.ndarray:
        if self.rate_hz is None:
            try:
                return read_audio_at(content, rate_hz, mono=False)
            except UserError as error:
                raise SynthesisError("the answer is no audio") from error
        if len(content) % 2:
            raise SynthesisError("the answer is no audio")
        return resample(np.frombuffer(content, "<i2").astype(np.float32) / 32768, self.rate_hz, rate_hz)
