import numpy as np
import pytest

from omniaudio.data.augment import CODECS, Chain, Codec, Gain, Noise, Speed
from omniaudio.errors import UserError
from tests.corpus.make_audio import tone, write_audio

RATE = 16_000
SOUND = (tone(1.0, 0.3, 440.0), 8000.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def peak_hz(wav_N):
    return float(np.abs(np.fft.rfft(wav_N)).argmax() * RATE / len(wav_N))


def snr_db(clean, mixed):
    return 10 * np.log10(np.mean(clean**2) / np.mean((mixed - clean) ** 2))


@pytest.mark.parametrize("step", [Speed(1.0), Gain(1.0), Noise(1.0), Codec(1.0), Chain([Speed(0.5), Noise(0.5), Codec(0.5)])])
def test_the_same_draws_change_alike_and_the_input_stays(step):
    before = SOUND[0].copy()
    one, again, other = step(SOUND, RATE, rng()), step(SOUND, RATE, rng()), step(SOUND, RATE, rng(7))
    assert np.array_equal(one[0], again[0]) and one[1] == again[1] and one[0].dtype == np.float32
    assert isinstance(step, Codec) or not np.array_equal(one[0], other[0])
    assert np.array_equal(SOUND[0], before) and np.abs(one[0]).max() <= 1.0 + 1e-6


def test_speed_changes_length_and_pitch():
    (faster, band), (slower, low_band) = (Speed(1.0, [f])(SOUND, RATE, rng()) for f in (1.1, 0.9))
    assert (len(faster), len(slower)) == (pytest.approx(RATE / 1.1, abs=2), pytest.approx(RATE / 0.9, abs=2))
    assert (peak_hz(faster), peak_hz(slower)) == (pytest.approx(484, abs=3), pytest.approx(396, abs=3))
    assert (band, low_band) == (8000, 7200)
    assert Speed(1.0, [0.8, 1.2]).longest == 1.25 and Chain([Speed(1.0, [0.8]), Speed(1.0, [0.5])]).longest == 2.5


def test_gain_keeps_within_full_scale():
    assert Gain(1.0, (-6, -6))(SOUND, RATE, rng())[0] == pytest.approx(SOUND[0] * 10**-0.3, abs=1e-6)
    assert np.abs(Gain(1.0, (40, 40))(SOUND, RATE, rng())[0]).max() == pytest.approx(1.0)


@pytest.mark.parametrize("colour", ["white", "pink"])
def test_noise_has_the_level_and_colour_asked_for(colour):
    mixed, band = Noise(1.0, (10, 10), colour)((SOUND[0], 4000.0), RATE, rng())
    assert snr_db(SOUND[0], mixed) == pytest.approx(10, abs=0.1) and band == 8000, "there is sound everywhere now"
    power = np.abs(np.fft.rfft(mixed - SOUND[0])) ** 2
    low, high = power[100:800].mean(), power[4000:].mean()
    assert low / high == pytest.approx(1, abs=0.3) if colour == "white" else low / high > 10
    silence = np.zeros(100, np.float32)
    assert np.array_equal(Noise(1.0)((silence, 8000.0), RATE, rng())[0], silence)


def test_recorded_noise_is_repeated_where_it_is_short(tmp_path):
    write_audio(tmp_path / "n.wav", tone(0.25, 0.5, 1000.0))
    mixed, _ = Noise(1.0, (0, 0), folder=str(tmp_path))(SOUND, RATE, rng())
    assert snr_db(SOUND[0], mixed) == pytest.approx(0, abs=0.1)
    assert peak_hz(mixed - SOUND[0]) == pytest.approx(1000, abs=4)


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_keep_length_and_the_sound(codec):
    coded, band = Codec(1.0, [codec])(SOUND, RATE, rng())
    assert len(coded) == len(SOUND[0]) and band == {"mulaw": 4000}.get(codec, 8000)
    assert peak_hz(coded) == pytest.approx(440, abs=2)
    assert not np.array_equal(coded, SOUND[0])
    if codec == "mulaw":  # the others delay
        assert snr_db(SOUND[0][4000:12000], coded[4000:12000]) > 20


def test_shares_are_kept_and_a_step_does_not_move_the_draws_of_the_next():
    hits = sum(Gain(0.3, (-6, -6))(SOUND, RATE, rng(i))[0] is not SOUND[0] for i in range(400))
    assert hits / 400 == pytest.approx(0.3, abs=0.06)
    with_first, without = (Chain([Gain(share, (-6, -6)), Noise(1.0, (20, 20))]) for share in (1.0, 0.0))
    noise = [chain(SOUND, RATE, rng())[0] - base for chain, base in ((with_first, SOUND[0] * np.float32(10**-0.3)), (without, SOUND[0]))]
    assert noise[0] * 10**0.3 == pytest.approx(noise[1], abs=1e-4)


def test_mistakes_are_named(tmp_path):
    for make, expected in (
        (lambda: Gain(1.5), r"share 1.5 must lie in \[0, 1\]"),
        (lambda: Speed(1.0, [0.0]), "must be positive"),
        (lambda: Noise(1.0, (9, 3)), "the least comes first"),
        (lambda: Noise(1.0, colour="red"), "neither white nor pink"),
        (lambda: Noise(1.0, folder=str(tmp_path)), "no recordings of noise"),
        (lambda: Codec(1.0, ["gsm"]), "codecs gsm; allowed are mulaw"),
    ):
        with pytest.raises(UserError, match=expected):
            make()
