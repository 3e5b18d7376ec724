"""Training as a user runs it: killed and started again, on two processes, with wrong input."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omniaudio.cli import train
from omniaudio.cli.main import compose, main
from omniaudio.errors import UserError
from omniaudio.training.artifacts import find_milestones
from omniaudio.training.zero_files import load_without_code
from tests.conftest import STAGES, run_stage, train_words, write_pairs

STEPS = ["max_steps=30", "checkpoint_every_steps=4", "val_every_steps=10"]
FEW_STEPS = ["max_steps=12", "checkpoint_every_steps=3", "val_every_steps=5"]
LORA = [
    "backbone.lora={rank: 2}",
    "task.trainable=[lm.backbone.layers.*.lora_*,lm.audio_embed.*,lm.audio_head.*]",
]
COMMAND = [sys.executable, "-m", "omniaudio.cli.main", "train"]


def link_earlier_stages(chain: Path, exp_dir: Path, stage: str) -> None:
    exp_dir.mkdir(parents=True, exist_ok=True)
    for done in STAGES if stage == "dpo" else STAGES[: STAGES.index(stage)]:
        (exp_dir / done).symlink_to(chain / done)
    if stage == "dpo":
        write_pairs(chain, exp_dir / "pairs")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def last_step(metrics: Path) -> int:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except json.JSONDecodeError:
        return 0


def start(command: list[str]) -> subprocess.Popen[bytes]:
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment(), stdout=silent, stderr=silent, start_new_session=True)


def run_until(command: list[str], folder: Path, killed_at: int | None) -> None:
    """A training to its end, or killed with all its ranks as soon as it has logged a step."""
    process = start(command)
    while killed_at and last_step(folder / "metrics.jsonl") < killed_at:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    if killed_at:
        os.killpg(process.pid, signal.SIGKILL)
    assert (process.wait(timeout=500) == 0) is (killed_at is None)


@pytest.fixture(scope="module")
def one_process(
    tiny_chain: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Stage, and words of its model -> folder of its training by one process, made once."""

    @functools.cache
    def folder(stage: str, *more: str) -> Path:
        exp_dir = tmp_path_factory.mktemp("single")
        link_earlier_stages(tiny_chain, exp_dir, stage)
        command = [*COMMAND, *train_words(stage, tiny_data, exp_dir, *FEW_STEPS, *more)]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=500)
        return exp_dir / stage

    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words"),
    [(stage, []) for stage in STAGES if stage not in ("tokenizer", "codes", "pretrain_stage2")]
    + [
        ("tokenizer", ["task.balance.every_steps=3", "task.balance.equalise=true"]),
        ("dpo", []),
        ("dpo", ["backbone.lora={rank: 2}", 'task.trainable=["lm.backbone.layers.*.lora_*"]']),
        ("pretrain_stage2", ["strategy=ddp", "devices=2"]),
        ("pretrain_stage2", ["strategy=zero2", "devices=2"]),
        ("vocoder", ["strategy=ddp", "devices=2", "schedule.vocoder.adversarial_from=0.25"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value).replace("strategy=", ""),
)
def test_kill_9_and_the_same_command_again_give_the_unbroken_run(
    tiny_chain, tiny_data, tmp_path, one_process, stage, words
):
    spread = "devices=2" in words
    steps, killed_at = (FEW_STEPS, 5) if spread else (STEPS, 11)
    commands, folders = {}, {}
    for name in ("unbroken", "killed"):
        folders[name] = tmp_path / name / stage
        link_earlier_stages(tiny_chain, tmp_path / name, stage)
        given = [*steps, "milestones=[3,8,12]", *words]
        commands[name] = [*COMMAND, *train_words(stage, tiny_data, tmp_path / name, *given)]
    unbroken = start(commands["unbroken"])
    run_until(commands["killed"], folders["killed"], killed_at)
    assert not (folders["killed"] / "stamp.json").exists()
    assert unbroken.wait(timeout=500) == 0
    again = subprocess.run(
        commands["killed"], env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stdout
    metrics = {name: (folder / "metrics.jsonl").read_text() for name, folder in folders.items()}
    assert metrics["killed"] == metrics["unbroken"]
    left = {p.relative_to(folders["unbroken"]) for p in folders["unbroken"].rglob("model.safetensors")}
    assert {path.parts[1] for path in left if path.parts[0] == "milestones"} == {
        f"step-{step:08d}" for step in (3, 8, 12)
    }
    for path in left:
        first, second = (load_file(folder / path) for folder in folders.values())
        assert first and all(first[name].equal(second[name]) for name in first)
    if stage == "vocoder":
        assert Path("final/discriminator/model.safetensors") in left
    elif spread:
        check_like_one_process(one_process(stage), folders["unbroken"])


def test_a_milestone_is_the_part_as_it_was_after_its_step(tiny_data, tmp_path):
    """In the form of final/, so that the last one is equal to it."""
    run_stage("vocoder", tiny_data, tmp_path, "milestones=[1,2,5]")
    milestones = find_milestones(tmp_path / "vocoder" / "milestones")
    assert list(milestones) == [1, 2]
    final = tmp_path / "vocoder" / "final" / "vocoder"
    first, second, last = (
        load_file(f / "model.safetensors")
        for f in (milestones[1] / "vocoder", milestones[2] / "vocoder", final)
    )
    assert all(second[name].equal(last[name]) for name in last) and second.keys() == last.keys()
    assert any(not first[name].equal(last[name]) for name in last)
    assert {path.name for path in final.parent.iterdir()} == {"vocoder", "discriminator"}
    assert all([path.name for path in folder.iterdir()] == ["vocoder"] for folder in milestones.values())
    for name in ("config.yaml", "fingerprint.json"):
        assert (milestones[1] / "vocoder" / name).read_text() == (final / name).read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_workers_as_if_unbroken(tiny_chain, tiny_data, tmp_path):
    """Killed with one process, then with two that read ahead in two workers each; ended by one with a worker."""
    stage, steps = "pretrain_stage1", ["max_steps=40", "checkpoint_every_steps=2", "val_every_steps=20"]
    ways = [[], ["strategy=ddp", "devices=2", "num_workers=2"], ["num_workers=1"]]
    folder = tmp_path / "moved" / stage
    for name in ("moved", "single"):
        link_earlier_stages(tiny_chain, tmp_path / name, stage)
    for way, killed_at in zip(ways, (8, 16, None), strict=True):
        command = [*COMMAND, *train_words(stage, tiny_data, tmp_path / "moved", *steps, *way)]
        run_until(command, folder, killed_at)
    words = train_words(stage, tiny_data, tmp_path / "single", *steps)
    subprocess.run([*COMMAND, *words], env=environment(), check=True, capture_output=True, timeout=500)
    losses = []
    for path in (folder, tmp_path / "single" / stage):
        lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        losses.append({line["step"]: line["train/loss"] for line in lines if "train/loss" in line})
    assert len(losses[1]) >= 20 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_make_the_tokenizer_of_one(tiny_chain, tiny_data, tmp_path, one_process):
    """Masks, replaced items, dropped books, restarts, averages, losses: none depends on who had which clip."""
    folder = tmp_path / "spread" / "tokenizer"
    link_earlier_stages(tiny_chain, tmp_path / "spread", "tokenizer")
    spread = ["strategy=ddp", "devices=2", *FEW_STEPS]
    words = train_words("tokenizer", tiny_data, tmp_path / "spread", *spread)
    subprocess.run([*COMMAND, *words], env=environment(), check=True, capture_output=True, timeout=500)
    check_like_one_process(one_process("tokenizer"), folder)
    found = [
        load_file(path / "final/tokenizer/model.safetensors") for path in (folder, one_process("tokenizer"))
    ]
    books = [name for name in found[0] if name.endswith((".embed", ".unused_steps"))]
    assert len(books) == 16
    for name in books:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "processes", "more"),
    [
        ("zero1", (1, 2), []),
        (
            "zero3",
            (2, 1),
            ["backbone.recompute=true", "audio_head.recompute=true"],
        ),  # as the full size is shipped
        ("zero2", (1, 2), LORA),
        ("zero3", (1, 2), LORA),
    ],
)
def test_zero_trains_the_model_of_one_process_and_goes_on_with_other_ranks(
    tiny_chain, tiny_data, tmp_path, one_process, strategy, processes, more
):
    """From the weights of the stage before; killed on the way, ended by another number of processes."""
    folder = tmp_path / "moved" / "pretrain_stage2"
    link_earlier_stages(tiny_chain, tmp_path / "moved", "pretrain_stage2")
    for devices, killed_at in zip(processes, (5, None), strict=True):
        words = [*FEW_STEPS, f"strategy={strategy}", f"devices={devices}", *more]
        command = [*COMMAND, *train_words("pretrain_stage2", tiny_data, tmp_path / "moved", *words)]
        run_until(command, folder, killed_at)
    single = one_process("pretrain_stage2", *(more if more is LORA else ()))
    check_like_one_process(single, folder)
    ours, theirs = (load_file(path / "final/lm/model.safetensors") for path in (folder, single))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    ups = [tensor for name, tensor in ours.items() if ".lora_B." in name]
    assert bool(ups) == (more is LORA) and all(bool(up.any()) for up in ups)


@pytest.mark.slow
def test_zero_in_bfloat16_hands_float32_to_the_next_stage_and_frozen_weights_as_they_were(
    tiny_chain, tiny_data, tmp_path
):
    link_earlier_stages(tiny_chain, tmp_path, "pretrain_stage2")
    words = [
        "strategy=zero2",
        "devices=2",
        "trainer.precision=bf16-mixed",
        "max_steps=3",
        "val_every_steps=3",
    ]
    command = [*COMMAND, *train_words("pretrain_stage2", tiny_data, tmp_path, *words)]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=500)
    folder = tmp_path / "pretrain_stage2"
    newest = folder / "checkpoints/step-00000002.ckpt"
    computed_with = load_without_code(str(newest / "checkpoint/mp_rank_00_model_states.pt"))["module"]
    before, after = (
        load_file(path / "final/lm/model.safetensors") for path in (tiny_chain / "pretrain_stage1", folder)
    )
    frozen = {name.removeprefix("lm.") for name in json.loads((folder / "freeze.json").read_text())["frozen"]}
    assert frozen and frozen < before.keys() == after.keys()
    for name, tensor in before.items():
        assert computed_with[f"lm.{name}"].dtype == torch.bfloat16, name
        assert after[name].dtype == torch.float32, name
        assert torch.equal(after[name], tensor) == (name in frozen), name


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "strategy"), [("tokenizer", "zero2"), ("flow", "zero3")])
def test_zero_does_not_round_sound(tiny_chain, tiny_data, tmp_path, stage, strategy):
    """In bfloat16 its losses are those of autocast: mels are made of waveforms as they were read."""
    losses = []
    for name, words in (("zero", [f"strategy={strategy}"]), ("single", [])):
        link_earlier_stages(tiny_chain, tmp_path / name, stage)
        words += ["trainer.precision=bf16-mixed", "max_steps=2", "val_every_steps=1"]
        command = [*COMMAND, *train_words(stage, tiny_data, tmp_path / name, *words)]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=500)
        lines = map(json.loads, (tmp_path / name / stage / "metrics.jsonl").read_text().splitlines())
        losses.append([line[key] for line in lines for key in ("val/loss", "train/loss") if key in line])
    assert len(losses[0]) >= 3 and losses[0][:2] == pytest.approx(losses[1][:2], rel=3e-5)
    assert losses[0] == pytest.approx(losses[1], rel=5e-4)  # weights are rounded after each step


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_processes_prefer_what_one_does(tiny_chain, tiny_data, tmp_path, strategy):
    """Means over all pairs, and held-out numbers over those of both processes."""
    found = {}
    for name, words in (("one", []), ("two", [f"strategy={strategy}", "devices=2"])):
        link_earlier_stages(tiny_chain, tmp_path / name, "dpo")
        command = [*COMMAND, *train_words("dpo", tiny_data, tmp_path / name, *FEW_STEPS, *words)]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=500)
        lines = [
            json.loads(line) for line in (tmp_path / name / "dpo/metrics.jsonl").read_text().splitlines()
        ]
        keys = ("train/loss", "train/dpo/pairs", "train/ce/chosen", "val/loss", "val/margin", "val/accuracy")
        found[name] = [[line[key] for line in lines if key in line] for key in keys]
    for one, two in zip(found["one"], found["two"], strict=True):
        assert len(one) >= 2 and one == pytest.approx(two, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_under_torchrun_two_processes_make_the_run_of_one_in_one_folder(
    tiny_chain, tiny_data, tmp_path, one_process
):
    stage, exp_dir = "pretrain_stage2", tmp_path / "spread"
    link_earlier_stages(tiny_chain, exp_dir, stage)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = train_words(stage, tiny_data, exp_dir, *FEW_STEPS, "strategy=ddp", "devices=2")
    subprocess.run(
        [*torchrun, "-m", *COMMAND[2:], *words],
        env=environment(),
        check=True,
        capture_output=True,
        timeout=500,
    )
    check_like_one_process(one_process(stage), exp_dir / stage)
    assert {path.name for path in exp_dir.iterdir()} == set(STAGES[: STAGES.index(stage) + 1])
    assert (exp_dir / stage / "log.txt").read_text().count(f"{exp_dir / stage / 'final' / 'lm'}") == 1


def test_losses_are_for_tensorboard_too_unless_another_word_is_said(tiny_data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = compose("train", ["experiment=baichuan_audio/text_lm", "scale=tiny"])["tracker"]
    run_stage("text_lm", tiny_data, tmp_path, f"tracker={tracker}")
    folder = tmp_path / "text_lm"
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in told if "train/loss" in line]
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    events = board.Scalars("train/loss")
    steps = [[event.step for event in board.Scalars(name)] for name in ("train/loss", "train/grad_norm")]
    assert steps[0] == steps[1], "one clock for losses and for what the task logs itself"
    assert [event.value for event in events] == pytest.approx(losses, abs=1e-6) and len(losses) == 2
    assert sum(path.stat().st_size for path in (folder / "tensorboard").iterdir()) < 10_000
    run_stage("text_lm", tiny_data, tmp_path / "other", "device_batch=100")
    folder = tmp_path / "other" / "text_lm"
    assert not (folder / "tensorboard").exists()
    assert "accumulate=3: 256 a step are at most 100 on a device at once" in (folder / "log.txt").read_text()


def test_a_limit_of_a_device_asks_for_more_batches_a_step():
    def batches(*words):
        words = ["experiment=baichuan_audio/pretrain_stage2", *words]
        return train.with_accumulate(compose("train", words))["accumulate"]

    assert batches("devices=8") == 32 and batches("devices=8", "num_nodes=8") == 4
    assert batches("devices=8", "accumulate=40") == 40, "at least"
    assert batches("device_batch=null") == batches("device_batch=null", "devices=8") == 1
    assert batches("scale=tiny", "devices=2") == 1
    with pytest.raises(UserError, match="device_batch=0: must be a positive number, or null for no limit"):
        batches("device_batch=0")


def test_a_published_model_is_fetched_only_where_nothing_else_gives_the_weights(tmp_path):
    def build(stage, part):
        words = train_words(stage, tmp_path, tmp_path, "backbone.pretrained=nowhere")
        return train.make_task(compose("train", words))._factories[part]()

    assert build("pretrain_stage1", "lm").backbone.vocab_size
    with pytest.raises(UserError, match=r"backbone\.pretrained: cannot read 'nowhere'"):
        build("text_lm", "backbone")


def check_like_one_process(single: Path, folder: Path) -> None:
    """Same global steps; losses agree within what sums in another order may differ."""
    losses = []
    for path in (folder, single):
        lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    proofs = [json.loads((path / "freeze.json").read_text())["frozen"] for path in (folder, single)]
    assert proofs[0] and all(before == after for before, after in proofs[0].values())
    assert proofs[0] == proofs[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["strategy=zero9"], "strategy='zero9': allowed are single, ddp, zero1, zero2, zero3"),
        (["tracker=nothing"], "tracker='nothing'"),
        (["data_dir=nowhere"], "nowhere"),
        (["task.trainable=[lm.nothing.*]"], "'lm.nothing.*' matches no parameter"),
        (["books.codebook_sizes=[16,8,8,4,4,4,4,8]"], "codebook_sizes"),
        (["mixture.pretrain.weights.poems=1"], "poems"),
        (["schedule.pretrain_stage1.tokens_per_step=8"], "8 positions"),
        (
            ["init={lm.backbone: no/folder}"],
            "config init.lm.backbone: no/folder is missing; run the stage that writes it first, "
            "or begin anew: 'init={lm.backbone: null}'",
        ),
    ],
)
def test_a_mistake_is_one_line(tiny_chain, tiny_data, tmp_path, capsys, words, expected):
    link_earlier_stages(tiny_chain, tmp_path / "exp", "pretrain_stage1")
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_words("pretrain_stage1", tiny_data, tmp_path / "exp", *words)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and expected in error and error.startswith("omniaudio: error:")


@pytest.mark.parametrize("stage", ["pretrain_stage1", "flow"])
def test_codes_of_another_tokenizer_are_refused(tiny_chain, tiny_data, tmp_path, capsys, stage):
    """The tokenizer was trained again, its codes were not written again."""
    exp_dir = tmp_path / "exp"
    exp_dir.mkdir()
    for done in ("text_lm", "codes"):
        (exp_dir / done).symlink_to(tiny_chain / done)
    run_stage("tokenizer", tiny_data, exp_dir, "seed=1")
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_words(stage, tiny_data, exp_dir)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert f"{exp_dir}/codes was made for another token layout: tokenizer_weights" in error
    assert not (exp_dir / stage / "final").exists()


def test_a_file_in_the_way_is_one_line(tiny_chain, tiny_data, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_words("text_lm", tiny_data, tmp_path / "file")])
    assert stop.value.code in (2, 3) and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_published_llm_is_taken_as_it_is_and_read_by_later_stages(tiny_data, tmp_path):
    """``--backbone``: no step of its own; its weights are the judge of the tokenizer, which knows it by its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from omniaudio.frontend.vocabulary import make_vocabulary

    published = tmp_path / "published"
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(published)
    make_vocabulary(tmp_path / "own.json", tiny_data / "texts" / "train.txt", 300)
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "own.json")).save_pretrained(published)
    llama, exp_dir = "backbone._target_=omniaudio.lm.backbone.LlamaBackbone", tmp_path / "exp"
    run_stage("text_lm", tiny_data, exp_dir, llama, f"backbone.pretrained={published}", "max_steps=0")
    kept = load_file(exp_dir / "text_lm" / "final" / "backbone" / "model.safetensors")
    theirs = model.state_dict()
    assert torch.equal(kept["embed_tokens.weight"][:300], theirs["model.embed_tokens.weight"])
    assert torch.equal(kept["layers.1.mlp.up_proj.weight"], theirs["model.layers.1.mlp.up_proj.weight"])
    assert "no data is read" in (exp_dir / "text_lm" / "data.html").read_text()
    run_stage("tokenizer", tiny_data, exp_dir, llama, "max_steps=1")
    proof = json.loads((exp_dir / "tokenizer" / "freeze.json").read_text())
    assert any(name.startswith("judge.layers") for name in proof["frozen"])


def test_adapters_are_a_group_of_parameters_like_any_other(tiny_chain, tiny_data, tmp_path):
    """Stage 2 with adapters begins from a stage 1 without; the next stage begins from them."""
    exp_dir = tmp_path / "exp"
    link_earlier_stages(tiny_chain, exp_dir, "pretrain_stage2")
    lora = "backbone.lora={rank: 2}"
    learning = 'task.trainable=["lm.backbone.layers.*.lora_*", "lm.audio_head.*"]'
    run_stage("pretrain_stage2", tiny_data, exp_dir, lora, learning)
    before = load_file(exp_dir / "pretrain_stage1" / "final" / "lm" / "model.safetensors")
    after = load_file(exp_dir / "pretrain_stage2" / "final" / "lm" / "model.safetensors")
    base = {
        name.replace(".base_layer.", "."): tensor for name, tensor in after.items() if ".lora_" not in name
    }
    moved = {name for name, tensor in base.items() if not torch.equal(tensor, before[name])}
    assert base.keys() == before.keys() and moved and all(name.startswith("audio_head.") for name in moved)
    ups = [tensor for name, tensor in after.items() if ".lora_B." in name]
    assert ups and all(up.abs().max() > 0 for up in ups), "they begin at zero"
    run_stage("sft", tiny_data, exp_dir, lora, learning)
    proof = json.loads((exp_dir / "sft" / "freeze.json").read_text())
    assert any("base_layer" in name for name in proof["frozen"]) and not any(
        ".lora_" in n for n in proof["frozen"]
    )


def test_the_cores_are_shared_out_among_processes_that_are_still_to_start(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    before, found = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    train.set_threads(None, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    train.set_threads(None, 4)
    train.set_threads(3, 4)
    assert found == [2, 4, 3] and torch.get_num_threads() == before
