import time

import pytest

from omniaudio.metrics.speed import Stopwatch


def test_adds_up_work_and_speech():
    watch = Stopwatch()
    for _ in range(2):
        with watch.running(speech_sec=0.5):
            time.sleep(0.02)
    assert watch.speech_sec == 1.0
    assert watch.real_time_factor == pytest.approx(0.04, abs=0.03)
    assert watch.real_time_factor >= 0.04


def test_no_speech_gives_no_number():
    watch = Stopwatch()
    with watch.running():
        pass
    assert watch.real_time_factor is None
