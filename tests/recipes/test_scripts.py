"""Every run.sh passes shellcheck, and its dry run prints one command for each stage it is asked for."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from omniaudio.cli.main import VERBS, compose

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("recipes/*/run.sh"), *ROOT.glob("egs/*/run.sh")])
SHELL_FILES = [*SCRIPTS, *sorted(ROOT.glob("tools/*.sh")), ROOT / ".ci" / "run"]


def run(script: Path, *options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *options], capture_output=True, text=True, cwd=cwd, timeout=60, check=False
    )


def commands(script: Path, *options: str, cwd: Path = ROOT) -> dict[int, list[str]]:
    """Stage -> command lines of a dry run."""
    done = run(script, "--dry_run", "true", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    found: dict[int, list[str]] = {}
    for line in done.stdout.splitlines():
        if title := re.match(r"# stage (-?\d+): ", line):
            stage = int(title[1])
            found[stage] = []
        else:
            found[stage].append(line)
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_scripts() -> None:
    assert {"recipes", "egs"} <= {relative(script).split("/")[0] for script in SCRIPTS}


@pytest.mark.parametrize("script", SHELL_FILES, ids=relative)
def test_shellcheck(script: Path) -> None:
    tool = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install -e .[dev])")
    done = subprocess.run([tool, "-x", str(script)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_dry_run_prints_one_command_for_each_stage_and_two_for_the_evaluation(script: Path) -> None:
    found = commands(script)
    assert list(found) == list(range(min(found), max(found) + 1))
    for stage, lines in found.items():
        assert len(lines) == (2 if stage == 11 else 1), f"stage {stage}"
        assert all(line.startswith("omniaudio ") for line in lines), f"stage {stage}"


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_stage_and_stop_stage_choose(script: Path) -> None:
    everything = commands(script)
    assert commands(script, "--stage", "2", "--stop_stage", "3") == {n: everything[n] for n in (2, 3)}
    assert list(commands(script, "--stage=4", "--stop-stage=4")) == [4]


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stage", "99"], "--stage 99: there is no such stage; stages are -1 to 12"),
        (["--stop_stage", "two"], "--stop_stage two: there is no such stage"),
        (["--stage", "3", "--stop_stage", "1"], "nothing to do"),
        (["--sclae", "mini"], "unknown option --sclae"),
        (["mini"], "'mini' is not an option"),
        (["--tag"], "needs a value"),
        (["--dry_run", "maybe"], "must be true or false"),
        (["--finetune_vocoder", "maybe"], "must be true or false"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_words_are_one_line_and_exit_code_2(script: Path, options: list[str], said: str) -> None:
    done = run(script, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "omniaudio " not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_a_finetuned_vocoder_is_the_one_that_is_exported(script: Path) -> None:
    found = commands(script, "--finetune_vocoder", "true", "--tag", "t")
    assert [shlex.split(line)[2].split("/")[1] for line in found[8]] == ["vocoder", "vocoder_finetune"]
    assert shlex.split(found[9][0])[-1] == "parts.vocoder=exp/t/vocoder_finetune/final/vocoder"
    for line in [*found[8], *found[9]]:
        _, verb, *words = shlex.split(line)
        compose(verb, words)


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_help_is_the_header(script: Path) -> None:
    done = run(script, "--help")
    assert done.returncode == 0
    assert "--audio_dir" in done.stdout
    assert "#!" not in done.stdout and "set -e" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_own_folder_of_audio(script: Path, tmp_path: Path) -> None:
    (tmp_path / "my audio").mkdir()
    found = commands(script, "--audio_dir", "my audio", cwd=tmp_path)
    for stage in (-1, 0):
        line = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {found[stage][0]}"], capture_output=True, text=True, check=True
        )
        assert line.stdout.splitlines()[2:4] == ["corpus=folder", f"corpus.folder='{tmp_path}/my audio'"]
    for stage in range(1, 13):
        assert " data=folder " in f"{found[stage][0]} "
        assert " tag=baichuan_audio_folder_mini" in found[stage][0]


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
@pytest.mark.parametrize(
    "options",
    [
        ["--scale", "tiny"],
        ["--scale", "tiny", "--trainer", "gpu", "--audio_dir", "a b", "--asr_judge", "x/y"],
    ],
    ids=["cpu", "gpu"],
)
def test_every_printed_command_is_a_valid_config(script: Path, options: list[str]) -> None:
    for stage, lines in commands(script, *options).items():
        for line in lines:
            _, verb, *words = shlex.split(line)
            assert verb in VERBS, f"stage {stage}"
            assert compose(verb, words), f"stage {stage}"


RECIPE = ROOT / "recipes" / "baichuan_audio" / "run.sh"


def test_options_reach_the_commands() -> None:
    found = commands(
        RECIPE,
        *("--data", "cats", "--scale", "tiny", "--trainer", "gpu", "--strategy", "zero2", "--devices", "2"),
        *(
            "--tag",
            "try",
            "--encoder",
            "openai/whisper-tiny",
            "--backbone",
            "some/llm",
            "--asr_judge",
            "some/asr",
        ),
        *("--overrides", "seed=3 optim.lr=1e-4"),
    )
    assert found[-1] == ["omniaudio prepare corpus=cats step=fetch record_dir=exp/try/fetch"]
    assert found[2] == [
        "omniaudio train experiment=baichuan_audio/tokenizer scale=tiny data=cats tag=try trainer=gpu "
        "strategy=zero2 devices=2 encoder.pretrained=openai/whisper-tiny backbone.pretrained=some/llm seed=3 "
        "optim.lr=1e-4"
    ]
    assert all("backbone.pretrained=some/llm" in found[stage][0] for stage in (1, 2, 4, 5, 6))
    assert "strategy=zero2 devices=2 strategy=ddp" in found[8][0], (
        "ZeRO takes one optimizer, a vocoder has two"
    )
    assert found[11] == [
        f"omniaudio evaluate system=baichuan_audio scale=tiny data=cats tag=try {task}device=cuda asr_judge=some/asr"
        for task in ("", "task=curve ")
    ]


def test_what_zero_offloads_ddp_does_not() -> None:
    found = commands(RECIPE, "--scale", "tiny", "--strategy", "zero2", "--overrides", "seed=3 offload=true")
    configs = [compose("train", shlex.split(found[stage][0])[2:]) for stage in (2, 5, 8)]
    ways = [(config["strategy"], config["offload"], config["seed"]) for config in configs]
    assert ways == [("zero2", True, 3), ("zero2", True, 3), ("ddp", False, 3)]


@pytest.mark.parametrize(
    "options, expected",
    [
        (("--scale", "huge"), "--scale huge: can be full mini mini_long tiny whisper_base"),
        (("--trainer", "tpu"), "--trainer tpu: can be cpu gpu"),
        (("--audio_dir", "no/such"), "--audio_dir no/such: there is no such folder"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_installed(
    options: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    done = run(ROOT / "egs" / "asterisk" / "run.sh", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(expected)
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_apt_it_says_how_to_bring_your_own(tmp_path: Path) -> None:
    for part in ("recipes", "tools", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dirname").symlink_to(str(shutil.which("dirname")))
    script = tmp_path / "recipes" / "baichuan_audio" / "run.sh"
    done = subprocess.run(
        [str(shutil.which("bash")), str(script)],
        env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "has no apt; give your own: --audio_dir FOLDER" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_local_folders_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    line = commands(RECIPE, "--backbone", "llm", "--stage", "1", "--stop_stage", "1", cwd=tmp_path)[1][0]
    assert f"backbone.pretrained={tmp_path}/llm" in line


def test_a_folder_that_was_built_or_joined_is_trained_on_as_it_is(tmp_path: Path) -> None:
    for part in ("recipes", "tools", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "omniaudio").write_text('#!/bin/sh\necho "omniaudio $*"\n')
    (tmp_path / "bin" / "omniaudio").chmod(0o755)
    script = tmp_path / "recipes" / "baichuan_audio" / "run.sh"
    words = ["bash", str(script), "--data", "spoken", "--stop_stage", "1"]
    where = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}

    def recipe() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=where, capture_output=True, text=True, timeout=60, check=False)

    assert recipe().returncode == 2
    for stamp in ("build.json", "joined.json"):
        (tmp_path / "data" / "spoken").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "spoken" / stamp).touch()
        done = recipe()
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("omniaudio")]
        assert line.startswith("omniaudio train experiment=baichuan_audio/text_lm") and "data=spoken" in line
        assert done.stdout.count("data/spoken is there already") == 2
        (tmp_path / "data" / "spoken" / stamp).unlink()


def test_a_failing_command_ends_the_recipe(tmp_path: Path) -> None:
    helpers = ROOT / "tools" / "recipe.sh"
    script = tmp_path / "run.sh"
    script.write_text(
        f'set -euo pipefail\n. "{helpers}"\nstages 0 2\nparse_options "$@"\n'
        "if stage 0 first; then run true; fi\nif stage 1 second; then run bash -c 'exit 7'; fi\n"
        "if stage 2 third; then run touch reached; fi\n"
    )
    done = run(script, cwd=tmp_path)
    assert done.returncode == 7
    assert "--stage 1" in done.stderr
    assert not (tmp_path / "reached").exists()


@pytest.mark.parametrize("results", sorted(ROOT.glob("recipes/*/RESULTS.md")), ids=relative)
def test_commands_of_the_results_begin_from_what_those_before_them_made(results: Path):
    """Those with a tag of their own: every other one has the folder of run.sh."""
    written = results.read_text("utf-8").replace("\\\n", " ")
    made: set[str] = set()
    checked = 0
    for line in re.findall(r"^    ((?:omniaudio|mkdir) .*)$", written, re.MULTILINE):
        if link := re.search(r"ln -s \S+/(?:\{(\S+)\}|(\S+)) (exp/\S+)/$", line):
            made |= {f"{link[3]}/{name}" for name in (link[1] or link[2]).split(",")}
            continue
        verb, *words = shlex.split(line, comments=True)[1:]
        if not (tag := next((word.removeprefix("tag=") for word in words if word.startswith("tag=")), None)):
            continue
        config = compose(verb, words)
        if verb == "train":
            named = [*config["inputs"], *filter(None, config["init"].values())]
        elif verb == "export":
            named = [*config["parts"].values(), config["text_tokenizer"]]
        elif verb == "pairs":
            named = [config["codes_dir"], *([] if config["of"] == "recordings" else [config["model_dir"]])]
        else:
            named = [config["model_dir" if config.get("task") == "all" else "tokenizer"]]
            named += [config["text_tokenizer"]] if verb == "evaluate" else []
        needed = {"/".join(path.split("/")[:3]) for path in named if path.startswith(f"exp/{tag}/")}
        assert needed <= made, f"{line}: nothing above makes {sorted(needed - made)}"
        made.add(
            f"exp/{tag}/{ {'train': config.get('stage'), 'export': 'export', 'pairs': 'pairs'}.get(verb, 'codes') }"
        )
        checked += 1
    assert checked
