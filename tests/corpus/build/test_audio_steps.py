import itertools
from dataclasses import replace

import numpy as np
import pytest

from omniaudio.corpus.build import audio_steps
from omniaudio.corpus.build.audio_steps import (
    CutAtPauses,
    SpeakerClusters,
    SpeakerConsistency,
    VoiceActivity,
    at_sound,
    cluster,
)
from omniaudio.corpus.build.segment import Segment
from omniaudio.corpus.build.synthesis import EspeakNg, Voice
from omniaudio.errors import UserError

RATE = 16_000


def recording(wav_N, **facts):
    return Segment(
        key="r/0000", passage="r", wav_N=np.asarray(wav_N, np.float32), rate_hz=RATE, language="en", **facts
    )


@pytest.fixture(scope="module")
def speech():
    """A sentence of espeak-ng, about two seconds."""
    voice = Voice("en-us+m3", {"rate": 160, "pitch": 50})
    return EspeakNg().speak("Please hold the line while we connect your call.", voice, "en", RATE)


def test_speech_is_found_and_long_gaps_part_passages(speech):
    def pause(seconds):
        return np.zeros(int(seconds * RATE), np.float32)

    wav = np.concatenate([pause(1), speech, pause(1.5), speech, pause(7), speech, pause(1)])
    found = VoiceActivity(max_sec=20, max_pause_sec=0.8, max_gap_sec=5)([recording(wav, start_sec=100.0)])
    assert [(s.passage, s.place, s.key) for s in found] == [
        ("r-000", 0, "r-000/0000"), ("r-000", 1, "r-000/0001"), ("r-001", 0, "r-001/0000"),
    ]  # fmt: skip
    starts = [101, 102.5 + len(speech) / RATE, 109.5 + 2 * len(speech) / RATE]
    assert [s.start_sec for s in found] == pytest.approx(starts, abs=0.3)
    assert all(s.duration_sec == pytest.approx(len(speech) / RATE, abs=0.5) for s in found)
    joined = VoiceActivity(max_sec=20, max_pause_sec=2, max_gap_sec=5)([recording(wav)])
    assert [s.passage for s in joined] == ["r-000", "r-001"]
    (silent,) = VoiceActivity()([recording(pause(2))])
    assert silent.fault == "no speech"
    with pytest.raises(UserError, match="has no sound"):
        VoiceActivity()([Segment(key="a", passage="p")])


def test_no_passage_is_too_long(monkeypatch):
    stretches = [(i * 4 * RATE, (i * 4 + 3) * RATE) for i in range(7)]
    monkeypatch.setattr(VoiceActivity, "stretches", lambda self, wav_N: stretches)
    found = VoiceActivity(max_sec=3, max_passage_sec=11.0)([recording(np.zeros(28 * RATE))])
    assert [(s.passage, s.place) for s in found] == [
        *[("r-000", i) for i in range(3)], *[("r-001", i) for i in range(3)], ("r-002", 0),
    ]  # fmt: skip
    alone = VoiceActivity(max_sec=3, max_passage_sec=1.0)([recording(np.zeros(28 * RATE))])
    assert [s.key for s in alone] == [f"r-00{i}/0000" for i in range(7)]


def test_long_speech_is_cut_where_it_is_quietest():
    wav = np.ones(10 * RATE, np.float32)
    wav[int(3.3 * RATE) : int(3.4 * RATE)] = 0
    pieces = VoiceActivity(max_sec=4).joined([(0, 10 * RATE)], wav)
    assert pieces[0][0] == 0 and pieces[-1][1] == 10 * RATE
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces)), "nothing is lost"
    assert 3.3 * RATE <= pieces[0][1] <= 3.4 * RATE and all(end - begin <= 4 * RATE for begin, end in pieces)


def timed(text, seconds=0.4, pauses=None):
    words, at = [], 0.0
    for word in text.split():
        words.append((f" {word}", at, at + seconds))
        at += seconds + (pauses or {}).get(word, 0.0)
    return tuple(words)


def test_segments_end_behind_sentences_and_at_pauses_once_they_are_long():
    words = timed("One two three four. Five. Six seven, eight nine ten", pauses={"nine": 0.5})

    def texts(**settings):
        return [
            "".join(w for w, _, _ in group).strip()
            for group in CutAtPauses(**settings).cut(words, words[-1][2])
        ]

    assert texts(min_sec=1.0, max_sec=99) == ["One two three four.", "Five. Six seven, eight nine ten"]
    assert texts(min_sec=0.0, max_sec=99) == ["One two three four.", "Five.", "Six seven, eight nine ten"]
    assert texts(min_sec=0.0, max_sec=1.0) == [
        "One two three four.",
        "Five.",
        "Six seven,",
        "eight nine",
        "ten",
    ]
    assert CutAtPauses().cut((), 0.0) == []


def test_segments_share_out_the_sound_of_their_piece():
    words = timed("One two three. Four five six.", pauses={"three.": 0.6})
    piece = recording(np.arange(3 * RATE) / (3 * RATE), words=words, start_sec=10.0)
    first, second = CutAtPauses(min_sec=0.5)([piece])
    assert (first.text, second.text, first.place, second.place) == ("One two three.", "Four five six.", 0, 1)
    assert (
        first.wav_N[0] == 0
        and first.duration_sec == pytest.approx(1.5)
        and second.start_sec == pytest.approx(11.5)
    ), "the pause is shared out"
    assert second.wav_N[-1] == piece.wav_N[-1] and second.duration_sec == pytest.approx(1.5)
    more = CutAtPauses(min_sec=0.5)([piece, piece])
    assert [s.place for s in more] == [0, 1, 2, 3] and len({s.key for s in more}) == 4


def test_no_segment_is_too_short_to_be_learned_from():
    """A last word at the very end of its piece, a word without any length inside, and a piece of nothing."""
    words = timed("One two three. Four five six. Seven")
    at_end = (*words[:-1], (" Seven", 2.999, 3.0))
    parts = CutAtPauses(min_sec=0.5)([recording(np.zeros(3 * RATE), words=at_end)])
    assert [(s.text, s.fault) for s in parts] == [("One two three.", ""), ("Four five six. Seven", "")]
    assert sum(len(s.wav_N) for s in parts) == 3 * RATE
    inside = ((" A.", 0.0, 1.5), (" B.", 1.5, 1.5), (" C.", 1.5, 3.0))
    parts = CutAtPauses(min_sec=0.0)([recording(np.zeros(3 * RATE), words=inside)])
    assert [(s.text, s.fault) for s in parts] == [("A.", ""), ("B.", "shorter than 0.1 s"), ("C.", "")]
    (short,) = CutAtPauses()([recording(np.zeros(300), words=((" A", 0.0, 0.01),))])
    assert short.fault == "shorter than 0.1 s"


def test_times_of_words_count_from_their_segment():
    words = timed("One two three. Four five six.", pauses={"three.": 0.6})
    _, second = CutAtPauses(min_sec=0.5)([recording(np.zeros(3 * RATE), words=words)])
    assert [start for _, start, _ in second.words] == pytest.approx([0.3, 0.7, 1.1])
    assert second.words[-1][2] == pytest.approx(second.duration_sec)


def test_pauses_are_heard_where_a_recogniser_lets_words_last_until_the_next():
    """One two [silence of a second] three four: the times of the words are without any gap."""
    wav = np.sin(np.arange(4 * RATE) / 5).astype(np.float32)
    wav[int(1.2 * RATE) : int(2.2 * RATE)] *= 1e-3
    words = ((" One", 0.0, 0.6), (" two", 0.6, 1.9), (" three", 1.9, 3.0), (" four", 3.0, 4.0))
    heard = at_sound(recording(wav, words=words))
    assert [word for word, _, _ in heard] == [" One", " two", " three", " four"]
    assert [(round(a, 2), round(b, 2)) for _, a, b in heard] == [
        (0, 0.6),
        (0.6, 1.26),
        (2.14, 3.0),
        (3.0, 4.0),
    ]
    first, second = CutAtPauses(min_sec=0.5, max_sec=2.0)([recording(wav, words=words)])
    assert (first.text, second.text) == ("One two", "three four")
    assert first.duration_sec == pytest.approx(1.7, abs=0.02) == 4 - second.duration_sec
    (whole,) = CutAtPauses(min_sec=0.5, max_sec=2.0)(
        [recording(np.sin(np.arange(4 * RATE) / 5), words=words)]
    )
    assert whole.text == "One two three four"


class TwoVoices:
    """An encoder that hears the sign of the signal; notes its device."""

    def __init__(self, device):
        self.device = device

    def embed_utterance(self, wav_N, return_partials=False):
        parts = np.array([[1.0, 0.1] if half.mean() > 0 else [0.1, 1.0] for half in np.array_split(wav_N, 2)])
        parts /= np.linalg.norm(parts, axis=1, keepdims=True)
        whole = parts.mean(0) / np.linalg.norm(parts.mean(0))
        return (whole, parts, None) if return_partials else whole


def test_voices_are_compared_and_clustered(monkeypatch):
    monkeypatch.setattr(audio_steps, "load_voice_encoder", TwoVoices)
    one, other = np.full(RATE, 0.1), np.full(RATE, -0.1)
    pieces = [recording(wav) for wav in (one, other, one, np.concatenate([one, other]))]
    scores = [s.scores["voice_match"] for s in SpeakerConsistency()(pieces)]
    assert scores[:3] == pytest.approx([1, 1, 1]) and scores[3] < 0.8
    named = SpeakerClusters(0.1)([s.refused("") for s in pieces[:3]])
    assert [s.speaker for s in named] == ["r-s0", "r-s1", "r-s0"]
    assert SpeakerClusters()([]) == []
    assert (
        SpeakerConsistency("meta").encoder.device == SpeakerClusters(device="meta").encoder.device == "meta"
    )


def test_clusters_are_numbered_as_they_appear():
    voices = np.array([[0.0, 1.0], [1.0, 0.0], [0.05, 1.0], [1.0, 0.05]])
    assert (
        cluster(voices, 0.1) == [0, 1, 0, 1]
        and cluster(voices, 2.0) == [0] * 4
        and cluster(voices[:1], 0.1) == [0]
    )


@pytest.mark.parametrize("name", ["resemblyzer", "speechmos"])
def test_the_real_models_of_voices_and_opinions(name, speech):
    """With the packages of the extra ``corpora``."""
    pytest.importorskip(name)
    from omniaudio.corpus.build.audio_steps import Dnsmos

    voice = Voice("en-us+f2", {"rate": 160, "pitch": 80})
    other = EspeakNg().speak("Your call is important to us, please stay on the line.", voice, "en", RATE)
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    if name == "speechmos":
        good, bad = (s.scores["dnsmos"] for s in Dnsmos()([recording(speech), recording(noise)]))
        assert good > bad + 0.5
        return
    names = [s.speaker for s in SpeakerClusters()([recording(speech), recording(other), recording(speech)])]
    assert names[0] == names[2] != names[1]
    mixed = np.concatenate([speech, other])
    alone, both = (
        s.scores["voice_match"] for s in SpeakerConsistency()([recording(speech), recording(mixed)])
    )
    assert alone > both


def test_a_refused_piece_leaves_a_gap_in_the_places():
    """Pieces 0 and 2 of a passage: what comes after the gap does not follow what was before it."""
    pieces = [recording(np.zeros(3 * RATE), words=timed("One two three. Four five six."))]
    pieces += [replace(pieces[0], place=2)]
    places = [s.place for s in CutAtPauses(min_sec=0.5)(pieces)]
    assert places == [0, 1, 3, 4]
