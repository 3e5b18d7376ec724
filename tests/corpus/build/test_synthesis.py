import http.server
import json
import threading
import urllib.parse
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from omniaudio.config import build
from omniaudio.corpus.build.segment import Segment
from omniaudio.corpus.build.synthesis import EspeakNg, HttpEngine, Synthesise, SynthesisError, Voice
from omniaudio.errors import UserError
from omniaudio.frontend.audio import encode_audio
from tests.corpus.make_audio import tone


@pytest.fixture(scope="module")
def espeak():
    return EspeakNg(variants=["f2", "m3"], rates=[150, 250], pitches=[20, 80])


def pitch_hz(wav_N, rate_hz):
    """Median over loud frames of the lag at which a frame is most like itself."""
    frames = np.lib.stride_tricks.sliding_window_view(wav_N, rate_hz // 20)[:: rate_hz // 100].astype(
        np.float64
    )
    frames = frames[frames.std(1) > 0.5 * frames.std(1).max()]
    spectra = np.abs(np.fft.rfft(frames - frames.mean(1, keepdims=True), 4 * frames.shape[1])) ** 2
    likeness = np.fft.irfft(spectra)[:, rate_hz // 400 : rate_hz // 60]
    return rate_hz / float(np.median(likeness.argmax(1) + rate_hz // 400))


def test_espeak_speaks_with_voices_rates_and_pitches(espeak):
    voices = espeak.voices("en")
    assert len(voices) == 4 * 2 * 2 * 2 and len({voice.label for voice in voices}) == len(voices)
    assert espeak.voices("xx") == []
    text = "Hello there, how are you today?"

    def said(**settings):
        return espeak.speak(text, Voice("en-us+m3", {"rate": 150, "pitch": 20, **settings}), "en", 16_000)

    slow, fast, high = said(), said(rate=250), said(pitch=80)
    assert 1.0 < len(slow) / 16_000 < 4.0 and 0.05 < np.abs(slow).max() <= 1.0 and slow.dtype == np.float32
    assert len(fast) < 0.8 * len(slow)
    assert pitch_hz(high, 16_000) > 1.2 * pitch_hz(slow, 16_000)
    assert np.array_equal(said(), slow), "the same every time"
    for language in ("es", "fr", "it", "ru", "zh"):
        assert espeak.voices(language)


def test_espeak_says_the_same_whatever_it_said_before(espeak):
    voice, other = espeak.voices("en")[0], espeak.voices("en")[-1]
    said = espeak.speak("one two three", voice, "en", 16_000)
    for text in ("something else", "and more of it"):
        espeak.speak(text, other, "en", 16_000)
        assert np.array_equal(espeak.speak("one two three", voice, "en", 16_000), said)
    assert np.array_equal(EspeakNg().speak("one two three", voice, "en", 16_000), said)


def test_what_espeak_cannot_do_is_said(espeak):
    with pytest.raises(SynthesisError, match="voice nobody is unknown"):
        espeak.speak("one", Voice("nobody", {"rate": 150, "pitch": 50}), "en", 16_000)
    with pytest.raises(SynthesisError, match="no sound"):
        espeak.speak("", espeak.voices("en")[0], "en", 16_000)


def test_a_passage_has_one_voice_and_passages_have_many(espeak):
    step = Synthesise(espeak)
    spoken = step(
        [
            Segment(key=f"t{i}/{k}", passage=f"t{i}", text="3", spoken="three", language="en")
            for i in range(9)
            for k in (0, 1)
        ]
    )
    voices = [{s.speaker for s in spoken if s.passage == f"t{i}"} for i in range(9)]
    assert all(len(names) == 1 for names in voices) and len(set.union(*voices)) >= 5
    assert all(s.rate_hz == 16_000 and s.duration_sec > 0.2 for s in spoken)
    (failed,) = step([Segment(key="a", passage="p", text="one", language="xx")])
    assert (failed.fault, failed.goes_to) == ("synthesis: no voice for 'xx'", "tts")


class Answers(http.server.BaseHTTPRequestHandler):
    """Speaks what it is asked; is busy once at ``busy``, always when gone; refuses ``bad``; no audio at ``noise``."""

    asked: list = []
    gone = False

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((request, self.headers.get("X-Key")))
        text = request["tts_text"]
        busy = text == "busy" and sum(r["tts_text"] == "busy" for r, _ in self.asked) == 1
        status = 503 if busy or self.gone or text == "down" else 400 if text == "bad" else 200
        body = b"nonsense" if text == "noise" else encode_audio(tone(0.5, rate_hz=24_000), 24_000, "WAV")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@contextmanager
def serving(handler):
    """Its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def engine(monkeypatch):
    Answers.asked = []
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serving(Answers) as address:
        body = {"tts_text": "{text}", "speaker": "{voice}", "mode": "sft"}
        yield HttpEngine(f"{address}/tts", ["ann", "bob"], body, {"X-Key": "k"}, tries=2)


class CosyVoice(http.server.BaseHTTPRequestHandler):
    """As CosyVoice's server: form fields in, chunks of raw samples out; 422 for a field that is not there.

    One of its own: it refuses ``bad``.
    """

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        is_form = self.headers["Content-Type"] == "application/x-www-form-urlencoded"
        fields = dict(urllib.parse.parse_qsl(content.decode())) if is_form else {}
        wrong = self.path != "/inference_sft" or set(fields) != {"tts_text", "spk_id"}
        if wrong or fields["tts_text"] == "bad":
            body = b'{"detail": "Field required"}'
            self.send_response(422)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        level = {"英文女": 0.25, "英文男": 0.5}[fields["spk_id"]]
        samples = (tone(0.5, level, rate_hz=22_050) * 32768).astype("<i2").tobytes()
        if fields["tts_text"] == "odd":
            samples = samples[:-1]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for begin in range(0, len(samples), 1001):  # a chunk may end inside a sample
            chunk = samples[begin : begin + 1001]
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *words):
        pass


@pytest.fixture
def cosyvoice():
    """The choice of conf/, and the address of a server."""
    from omegaconf import OmegaConf

    path = Path(__file__).parents[3] / "conf" / "engine" / "cosyvoice.yaml"
    node = OmegaConf.to_container(OmegaConf.load(path))
    with serving(CosyVoice) as address:
        yield {**node, "url": f"{address}/inference_sft", "tries": 1}


def test_cosyvoice_answers_a_form_with_samples(cosyvoice):
    engine = build(cosyvoice, "engine")
    female, male = engine.voices("en")
    for voice, level in ((female, 0.25), (male, 0.5)):
        wav = engine.speak("Hello & goodbye", voice, "en", 22_050)
        assert wav == pytest.approx(tone(0.5, level, rate_hz=22_050), abs=1e-4)
    assert len(engine.speak("hello", female, "en", 16_000)) == 8000
    with pytest.raises(SynthesisError, match="no audio"):
        engine.speak("odd", female, "en", 16_000)
    with pytest.raises(SynthesisError, match="refuses .422"):
        engine.speak("bad", female, "en", 16_000)


def test_a_first_text_that_is_refused_is_the_texts_fault_or_the_configs(cosyvoice):
    voice = Voice("英文女", {})
    with pytest.raises(SynthesisError, match="refuses .422"):
        build(cosyvoice, "engine").speak("bad", voice, "en", 16_000)
    step = Synthesise(build({**cosyvoice, "body": {"text": "{text}"}}, "engine"))
    told = "refuses the first request .422 .*Field required.*see engine.form, engine.body"
    with pytest.raises(UserError, match=told) as error:
        step([Segment(key="a/0", passage="a", text="one two", language="en")])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="engine.form 'xml': one of json, form"):
        build({**cosyvoice, "form": "xml"}, "engine")
    for wrong in ({"rate_hz": None}, {"answer": "file"}):
        with pytest.raises(UserError, match="answer=pcm16 needs the rate"):
            build({**cosyvoice, **wrong}, "engine")


def test_an_engine_over_http(engine, monkeypatch):
    assert [voice.name for voice in engine.voices("en")] == ["ann", "bob"]
    wav = engine.speak("hello", Voice("bob", {}), "en", 16_000)
    assert len(wav) == 8000 and Answers.asked == [
        ({"tts_text": "hello", "speaker": "bob", "mode": "sft"}, "k")
    ]
    assert len(engine.speak("busy", Voice("ann", {}), "en", 24_000)) == 12_000, "asked again"
    with pytest.raises(SynthesisError, match="refuses .400"):
        engine.speak("bad", Voice("ann", {}), "en", 16_000)
    with pytest.raises(SynthesisError, match="no audio"):
        engine.speak("noise", Voice("ann", {}), "en", 16_000)
    with pytest.raises(SynthesisError, match="the engine fails: 503"):
        engine.speak("down", Voice("ann", {}), "en", 16_000)  # and speaks another text
    monkeypatch.setattr(Answers, "gone", True)
    with pytest.raises(UserError, match="503 .*, 2 times; the same command goes on"):
        engine.speak("hello", Voice("ann", {}), "en", 16_000)
    with pytest.raises(UserError, match="an address beginning with"):
        HttpEngine("file:///etc/passwd", [], {})


def test_a_user_has_many_voices_and_an_assistant_one(espeak):
    fixed = espeak.voices("en")[3].label
    step = Synthesise(espeak, voices={"assistant": fixed})
    spoken = step(
        [
            Segment(key=f"{p}/{i}", passage=p, language="en", text="yes", role=role)
            for p in "abcdef"
            for i, role in enumerate(["user", "assistant", "user"])
        ]
    )
    assert {s.speaker for s in spoken if s.role == "assistant"} == {fixed}
    of_users = {p: {s.speaker for s in spoken if s.passage == p and s.role == "user"} for p in "abcdef"}
    assert all(len(voices) == 1 for voices in of_users.values()) and len(set.union(*of_users.values())) > 2
    with pytest.raises(UserError, match=r"synthesise\.voices\.user: no voice 'nobody' for 'en'"):
        Synthesise(espeak, voices={"user": "nobody"})(
            [Segment(key="a/0", passage="a", language="en", text="a", role="user")]
        )


def test_accents_can_be_chosen_by_language():
    chosen = EspeakNg(variants=["f2"], rates=[150], pitches=[50], names={"en": ["en-us"]})
    assert [voice.name for voice in chosen.voices("en")] == ["en-us+f2"]
    assert {voice.name for voice in chosen.voices("es")} == {"es+f2", "es-419+f2"}
