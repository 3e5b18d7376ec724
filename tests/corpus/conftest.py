import pytest

from omniaudio.corpus.checks import Checks

DEFAULTS = {
    "sample_rate_hz": 16_000,
    "resample": False,
    "downmix": False,
    "min_sec": 0.3,
    "max_sec": 30.0,
    "min_level_db": -60.0,
    "max_clipped_share": 0.01,
    "min_chars_per_sec": 0.5,
    "max_chars_per_sec": 25.0,
    "max_text_chars": 2_000,
    "max_bad_share": 0.05,
}


@pytest.fixture
def make_checks():
    """Checks with the defaults of conf/prepare.yaml, some of them changed."""
    return lambda **changes: Checks(**{**DEFAULTS, **changes})
