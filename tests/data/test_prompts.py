import numpy as np
import pytest

from omniaudio.data.prompts import PROMPTS, prompt_for, with_voice


@pytest.mark.parametrize("task", PROMPTS)
def test_english_is_always_there_and_serves_others(task):
    assert PROMPTS[task]["en"]
    assert prompt_for(task, "xx") == PROMPTS[task]["en"][0]


def test_wordings_follow_the_seed():
    drawn = {prompt_for("asr", "en", np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == set(PROMPTS["asr"]["en"])


@pytest.mark.parametrize(
    ("own", "content"),
    [
        ([], ["You speak with this voice: ann."]),
        ([{"role": "system", "content": "Be brief."}], ["You speak with this voice: ann. Be brief."]),
        (
            [{"role": "system", "content": [b"sound", "x"]}],
            ["You speak with this voice: ann.", b"sound", "x"],
        ),
        ([{"role": "system", "content": []}], ["You speak with this voice: ann."]),
    ],
)
def test_a_voice_is_named_first_of_all(own, content):
    chat = [*own, {"role": "user", "content": "u"}]
    assert with_voice(chat, "ann") == [{"role": "system", "content": content}, chat[-1]]
