"""The command line: help, one clear line for a mistake, no heavy import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from omniaudio.cli import main as cli
from omniaudio.errors import REQUEUE, PreemptedError, UserError

TEXT_LM = ["experiment=baichuan_audio/text_lm", "scale=tiny"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(words)
    except SystemExit as error:
        code = int(error.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_names_every_verb(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(f"    {verb}" in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_help_with_its_keys(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and f"conf/{verb}.yaml" in out and len(out) > 300
    assert ("\nflow_steps: 10" in out) is (verb == "export"), "keys that it shares with a training"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fly",), "unknown verb 'fly'; verbs are prepare, build, join, manifest, plan, train"),
        (("train", *TEXT_LM, "encodre.width=3"), "encodre"),
        (("train", "experiment=baichuan_audio/nothing", "scale=tiny"), "experiment/baichuan_audio/nothing"),
        (("train", *TEXT_LM, "scale=giant"), "giant"),
        (("train",), "experiment"),
        (("plan", *TEXT_LM, "--show"), "show=: must be a whole number of samples, 0 for none"),
        (("plan", "--show", "-1", *TEXT_LM), "show=-1: must be a whole number of samples"),
        (("extract", "system=baichuan_audio"), "scale"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, words, expected):
    code, _, err = run(capsys, *words)
    assert code == 2 and len(err.splitlines()) == 1 and expected in err


def test_print_shows_the_resolved_config(capsys):
    code, out, _ = run(capsys, "train", *TEXT_LM, "--print")
    assert code == 0 and "tag: baichuan_audio_asterisk_tiny" in out and "${" not in out


def test_print_shows_no_secret(capsys):
    words = ["engine=http", "recogniser=r", "engine.url=http://localhost", "engine.names=[a]"]
    words.append("+engine.headers.Authorization=Bearer abc123")
    code, out, err = run(capsys, "build", *words, "--print")
    assert code == 0, err
    assert "Authorization: '***'" in out and "abc123" not in out


def test_a_training_that_a_scheduler_stopped_may_be_requeued(capsys, monkeypatch):
    def stopped(config):
        raise PreemptedError("stopped after step 12 by SIGTERM")

    monkeypatch.setattr("omniaudio.cli.train.main", stopped)
    code, _, err = run(capsys, "train", *TEXT_LM)
    assert code == REQUEUE == 75
    assert err == "omniaudio: error: stopped after step 12 by SIGTERM; the same command goes on from here\n"
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "train", *TEXT_LM) == (0, "", ""), (
        "an error there would kill the process that speaks for all"
    )


def test_missing_permission_and_full_disk_are_one_line(capsys, monkeypatch):
    import omniaudio.cli.doctor as doctor

    for number, word in ((13, "Permission denied"), (28, "No space left")):

        def broken(config: object, number: int = number, word: str = word) -> None:
            raise OSError(number, word, "exp/x")

        monkeypatch.setattr(doctor, "main", broken)
        code, _, err = run(capsys, "doctor")
        assert code == 3 and word in err and "exp/x" in err and len(err.splitlines()) == 1


def test_user_errors_come_without_traceback(capsys, monkeypatch):
    import omniaudio.cli.doctor as doctor

    monkeypatch.setattr(doctor, "main", lambda cfg: (_ for _ in ()).throw(UserError("a\nb")))
    assert run(capsys, "doctor")[::2] == (2, "omniaudio: error: a b\n")


def test_import_is_light():
    program = "import sys, time; t = time.time(); import omniaudio; print(time.time() - t, *sys.modules)"
    seconds, *modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    ).stdout.split()
    assert float(seconds) < 0.5
    assert not {"torch", "lightning", "hydra", "transformers", "deepspeed", "numpy"} & set(modules)


def test_a_key_that_is_also_a_group_takes_a_path():
    words = ["system=baichuan_audio", "scale=tiny", "vocoder=/some/where/final/vocoder"]
    assert cli.compose("evaluate", words)["vocoder"] == "/some/where/final/vocoder"
    words = ["system=baichuan_audio", "scale=tiny", "tokenizer=/some/where/final/tokenizer"]
    assert cli.compose("extract", words)["tokenizer"] == "/some/where/final/tokenizer"
    assert cli.compose("build", ["recogniser=none", "engine=http", "engine.url=http://a", "engine.names=[b]"])


@pytest.mark.parametrize("more", ["mixture@mixture.sft=chat", "mixture.sft.weights.sft_read=6"])
def test_voices_are_named_on_the_command_line(more):
    words = ["experiment=baichuan_audio/sft", more, "mixture.sft.voices={amy-1: a calm woman}"]
    assert cli.compose("train", words)["train_steps"]["mixture"]["voices"] == {"amy-1": "a calm woman"}


@pytest.mark.parametrize("word", ["--dry_run", "dry_run=true"])
def test_a_dry_run_of_a_training_is_its_plan(monkeypatch, tmp_path, word):
    from omniaudio.cli import plan, train

    planned = []
    monkeypatch.setattr(plan, "main", planned.append)
    monkeypatch.setattr(train, "main", lambda config: pytest.fail("it trains"))
    cli.main(
        [
            "train",
            "experiment=baichuan_audio/text_lm",
            "scale=tiny",
            f"exp_dir={tmp_path}",
            word,
            "max_steps=7",
        ]
    )
    (config,) = planned
    assert config["stage"] == "text_lm" and config["max_steps"] == 7 and config["data_too"]
    assert not list(tmp_path.iterdir())
