import shlex

import pytest
import yaml

from omniaudio.cli.again import command_of, trained_by
from omniaudio.cli.main import compose

NAMES = ["system=baichuan_audio", "scale=tiny", "data=mine", "tag=t"]
TOKENIZER = ["task=tokenizer", "depths=[1,8]", "continuous=exp/c/tokenizer", "streaming=[[25,50]]"]
HEARD = ["asr_judge=[some/judge,/another/one]", "vocoder=exp/v", "judge_dtype=bf16"]
EXPORT = [
    "flow_steps=[1,2]",
    "measures=[mel error,MCD]",
    "model_dir=exp/int8 model",
    "choices.num_questions=7",
]


@pytest.mark.parametrize(
    "words",
    [
        [],
        TOKENIZER,
        [*TOKENIZER, *HEARD],
        EXPORT,
        ["exp_dir=/far/away", "asr_judge=openai/whisper-base", "texts=a b.txt"],
    ],
)
def test_the_command_gives_the_config_again_in_few_words(words):
    config = compose("evaluate", [*NAMES, *words])
    program, verb, *again = shlex.split(command_of("evaluate", config))
    assert (program, compose(verb, again)) == ("omniaudio", config)
    assert sorted(again) == sorted([*NAMES, *words])


def test_names_that_need_quotes_and_words_of_a_training():
    config = compose("evaluate", [*NAMES, "exp_dir='/Röhr, (old)/it\\'s'", "texts='a=b,c.txt'"])
    assert config["exp_dir"] == "/Röhr, (old)/it's"
    _, verb, *again = shlex.split(command_of("evaluate", config))
    assert compose(verb, again) == config
    words = [
        "experiment=baichuan_audio/pretrain_stage2",
        "lm.deep_frame_share=0.5",
        "mixture.pretrain.weights.text=0",
    ]
    command = command_of("train", compose("train", [*words, *NAMES[1:]]), words[0])
    assert shlex.split(command)[2:] == [words[0], *NAMES[1:], *shlex.split(command)[6:]]
    assert compose("train", shlex.split(command)[2:]) == compose("train", [*words, *NAMES[1:]])
    assert "lm.deep_frame_share=0.5" in command and "optim" not in command


def test_the_command_of_a_stage_is_that_of_its_own_config(tmp_path):
    words = ["experiment=baichuan_audio/pretrain_stage2", *NAMES[1:], f"exp_dir={tmp_path}", "max_steps=7"]
    folder = tmp_path / "pretrain_stage2"
    folder.mkdir()
    config = compose("evaluate", [*NAMES, f"exp_dir={tmp_path}"])
    assert trained_by(config, folder.name) == " ".join(["omniaudio train", *words[:4]]), (
        "of an older one: its names"
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(compose("train", words)))
    again = shlex.split(trained_by(config, folder.name))[2:]
    assert "max_steps=7" in again and compose("train", again) == compose("train", words)


def test_what_is_taken_away_and_switched_is_said_too():
    config = compose("export", [*NAMES, "int8=true", "dialogue.stream.vocoder_look_ahead=8"])
    assert command_of("export", config).endswith("tag=t int8=true dialogue.stream.vocoder_look_ahead=8")
    config["dialogue"]["stream"]["vocoder_look_ahead"] = None
    assert command_of("export", config).endswith("tag=t int8=true")
    config["int8"], config["parts"] = False, {**config["parts"], "flow": None}
    assert command_of("export", config).endswith("tag=t parts.flow=null")
