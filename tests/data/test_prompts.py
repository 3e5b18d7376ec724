import numpy as np
import pytest

from omniaudio.data.prompts import PROMPTS, prompt_for


@pytest.mark.parametrize("task", PROMPTS)
def test_english_is_always_there_and_serves_others(task):
    assert PROMPTS[task]["en"]
    assert prompt_for(task, "xx") == PROMPTS[task]["en"][0]


def test_wordings_follow_the_seed():
    drawn = {prompt_for("asr", "en", np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == set(PROMPTS["asr"]["en"])
