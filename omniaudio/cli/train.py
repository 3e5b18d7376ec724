"""Train one stage of a system.

Reads conf/experiment/<system>/<stage>.yaml, made smaller by scale=, and writes under ${exp_dir}/<stage>/:

    config.yaml      the resolved config            metrics.jsonl   losses by step
    checkpoints/     the newest two; the same       freeze.json     hashes of what was frozen, before and after
                     command goes on from there     final/<name>/   weights, config and fingerprint of each part
    milestones/      the same, without final_only=, after the steps of milestones=, for omniaudio evaluate task=curve
    tensorboard/     the same losses for TensorBoard (tracker=none, wandb, wandb_offline: instead)
    left_out.jsonl   samples that a return to a checkpoint passed over, by step
    stamp.json       hash of config and inputs, time, versions    data.html     what it was going to read

    omniaudio train experiment=<system>/tokenizer data=asterisk scale=mini
    omniaudio train experiment=<system>/pretrain_stage2 scale=mini strategy=zero2 devices=2
    omniaudio train experiment=<system>/tokenizer scale=full --dry_run    what it would need and read; trains nothing
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omniaudio.config import build, factory
from omniaudio.errors import UserError
from omniaudio.fingerprint import Fingerprint
from omniaudio.stage import Stage, is_main_process, stage, without

MAKES_THE_RESULT = (
    "model", "init", "parts", "before", "task", "train_steps", "optim", "lr_schedule", "trainer", "max_steps",
    "gradient_clip", "seed", "deterministic",
)  # fmt: skip
"""Keys whose change means another training.  Processes, batches of a step, logging and other stages do not, nor what
``recovery`` says of steps that went wrong: a run that has ended so may go on with other limits; nor ``final_only``."""


def main(config: dict[str, Any]) -> None:
    """Run the stage that ``config`` describes, unless it is done."""
    folder = Path(config["exp_dir"]) / config["stage"]
    decisive = {key: config[key] for key in MAKES_THE_RESULT}
    with stage(folder, config=config, inputs=config["inputs"], decisive=decisive) as run:
        if not run.done:
            check_init(config["init"])
            fit(config, run)


def check_init(init: Mapping[str, str | None]) -> None:
    """What the training begins from must be there, before anything is read or started.

    Raises:
        UserError: names the folder that is not, and the word that does without.
    """
    from omniaudio.training.artifacts import WEIGHTS

    for name, folder in init.items():
        if folder is not None and not (Path(folder) / WEIGHTS).is_file():
            raise UserError(
                f"config init.{name}: {folder} is missing; run the stage that writes it first, "
                f"or begin anew: 'init={{{name}: null}}'"
            )


def fit(config: dict[str, Any], run: Stage) -> None:
    """Build everything, train from the newest checkpoint, prove the freezing, leave the parts in ``final/``."""
    import torch

    from omniaudio.training.callbacks import ProgressBar, Proof, Rehearsal
    from omniaudio.training.checkpoint import Checkpoints, Milestones
    from omniaudio.training.freeze import FreezeProof
    from omniaudio.training.loggers import JsonLinesLogger, make_trackers
    from omniaudio.training.preemption import Preemption
    from omniaudio.training.recovery import Return, StepWatch
    from omniaudio.training.zero_files import check_checkpoint

    config = with_accumulate(config, run.log if is_main_process() else None)
    set_threads(config["num_threads"], config["devices"])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # after its import, which sets INFO
    layout = token_layout(config, build(config["before"], "before") or {})
    torch.use_deterministic_algorithms(config["deterministic"], warn_only=True)
    task = make_task(config)
    task.tell = run.log
    task.watch = build(config["recovery"], "recovery") or StepWatch()
    checkpoints = Checkpoints(
        run.folder / "checkpoints",
        config["checkpoint_every_steps"],
        val_every_steps=config["val_every_steps"],
    )
    newest = checkpoints.newest(clean=is_main_process())
    if newest is not None:
        check_checkpoint(newest, config["strategy"])
    step = int(newest.stem.split("-")[1]) if newest is not None else 0
    metrics = JsonLinesLogger(run.folder / "metrics.jsonl", lambda: task.batches_seen // task.accumulate)
    proof = Proof(FreezeProof(run.folder / "freeze.json"), run, resumed=newest is not None)
    zero = config["strategy"].startswith("zero")  # DeepSpeed reads its own checkpoints
    save = partial(save_parts, config, task, run, layout)
    callbacks = [
        Preemption(checkpoints),
        proof,
        Return(checkpoints, run.folder / "left_out.jsonl"),
        Milestones(run.folder / "milestones", config["milestones"], partial(save, config["parts"])),
        checkpoints,
        ProgressBar(config["stage"], config["max_steps"]),
        *([] if zero else [Rehearsal()]),
    ]
    name = f"{config['tag']}/{config['stage']}"
    loggers = [metrics, *make_trackers(config["tracker"], run.folder, name, step)]
    trainer = make_trainer(config, run, callbacks, loggers, task.automatic_optimization)
    if is_main_process():
        metrics.cut_after(step)
        if step:
            run.log(f"going on from step {step} of {config['max_steps']}")
    data = make_data(config, run, layout)
    trainer.fit(task, data, ckpt_path=newest, weights_only=None if zero else True)
    save({**config["parts"], **config["final_only"]}, run.folder / "final")


def with_accumulate(config: dict[str, Any], tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The config with so many batches a step that they hold ``device_batch`` on average, and no fewer than it says.

    A document or clip that is longer by itself is not cut (``omniaudio plan`` counts the largest).

    Args:
        tell: hears of it when they are more.

    Raises:
        UserError: a limit that is not positive.
    """
    most, plan = config["device_batch"], config["schedule"][config["stage"]]
    if most is None:
        return config
    if isinstance(most, bool) or not isinstance(most, int | float) or most <= 0:
        raise UserError(f"device_batch={most}: must be a positive number, or null for no limit")
    size = plan["tokens_per_step" if "tokens_per_step" in plan else "batch_sec"]
    parts = math.ceil(size / (most * config["devices"] * config["num_nodes"]))
    if parts <= config["accumulate"]:
        return config
    if tell is not None:
        tell(f"accumulate={parts}: {size:,} a step are at most {most:,} on a device at once (device_batch)")
    return {**config, "accumulate": parts}


def make_data(config: dict[str, Any], run: Stage, layout: Fingerprint) -> Any:
    """What is trained on and what is held out; their codes and parts must have this layout."""
    from omniaudio.data.datamodule import StepData

    return StepData(
        factory(config["train_steps"], "train_steps"),
        factory(config["val_steps"], "val_steps"),
        max_steps=config["max_steps"],
        val_steps=config["num_val_steps"],
        num_workers=config["num_workers"],
        layout=layout,
        begin=lambda source: write_preflight(source, config, run.folder),
    )


def write_preflight(source: Any, config: dict[str, Any], folder: Path) -> None:
    """What the training is going to read, for the report."""
    from omniaudio.data.preflight import as_html, preflight
    from omniaudio.files import write_whole

    parts = config["devices"] * config["num_nodes"] * config["accumulate"]
    write_whole(
        folder / "data.html", as_html(preflight(source, config["max_steps"], parts, num_planned=50, show=9))
    )


def token_layout(config: dict[str, Any], facts: Fingerprint) -> Fingerprint:
    """What the parts share with the artefacts that ``config.fingerprint_of`` names."""
    from omniaudio.fingerprint import merge_fingerprints
    from omniaudio.training.artifacts import read_fingerprint

    known = [read_fingerprint(folder) for folder in config["fingerprint_of"]]
    return merge_fingerprints([facts, *known], ", ".join(config["fingerprint_of"]))


def make_trainer(
    config: dict[str, Any], run: Stage, callbacks: list[Any], loggers: list[Any], automatic: bool
) -> Any:
    """Lightning's trainer: one pass over the planned batches; stages, checkpoints and order are ours."""
    import torch
    from lightning import Trainer
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from omniaudio.training.checkpoint import SafeCheckpointIO
    from omniaudio.training.strategies import ZeroPrecision, make_strategy

    slurm = SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None  # Preemption saves
    settings, zero = config["trainer"], config["strategy"].startswith("zero")
    on_gpu = settings["accelerator"] == "gpu"
    if zero and not automatic:
        raise UserError(
            f"strategy={config['strategy']}: {config['stage']} has two optimizers, ZeRO takes one; use strategy=ddp"
        )
    if on_gpu and not torch.cuda.is_available():
        raise UserError("trainer=gpu: torch sees no GPU here; use trainer=cpu, or see: omniaudio doctor")
    return Trainer(
        accelerator=settings["accelerator"],
        devices=config["devices"],
        num_nodes=config["num_nodes"],
        strategy=make_strategy(config["strategy"], config["offload"]),
        precision=None if zero else settings["precision"],
        plugins=[
            ZeroPrecision(settings["precision"]) if zero else SafeCheckpointIO(),
            *([slurm] if slurm else []),
        ],
        accumulate_grad_batches=config["accumulate"],
        gradient_clip_val=config["gradient_clip"] if automatic else None,
        max_epochs=1,
        val_check_interval=config["val_every_steps"] * config["accumulate"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config["log_every_steps"],
        callbacks=callbacks,
        logger=loggers,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=run.folder,
    )


def make_task(config: dict[str, Any]) -> Any:
    """The task of a train config, its modules not yet built."""
    given = {path for path, folder in config["init"].items() if folder}
    modules = {
        name: factory(_to_start(node, given, name), f"model.{name}") for name, node in config["model"].items()
    }
    return build(
        config["task"],
        "task",
        modules=modules,
        optimizer=build(config["optim"], "optim"),
        scheduler=build(config["lr_schedule"], "lr_schedule"),
        init=config["init"],
        max_steps=config["max_steps"],
        accumulate=config["accumulate"],
        seed=config["seed"],
    )


def _to_start(node: Any, init: Collection[str], path: str) -> Any:
    """A part's config; what ``init`` gives its weights is not fetched from a hub before."""
    from omniaudio.training.artifacts import without_pretrained

    if path in init:
        return without_pretrained(node)
    if not isinstance(node, dict):
        return node
    return {key: _to_start(value, init, f"{path}.{key}") for key, value in node.items()}


def save_parts(
    config: dict[str, Any], task: Any, run: Stage, layout: Fingerprint, parts: Mapping[str, str], folder: Path
) -> None:
    """Write every part, name -> submodule, to ``folder/<name>/`` (all ranks: ZeRO gathers the weights)."""
    from omniaudio.fingerprint import merge_fingerprints
    from omniaudio.training.artifacts import save_module
    from omniaudio.training.strategies import gathered_state

    for name, path in parts.items():
        module = task.get_submodule(path)
        state = gathered_state(module, keep=task.trainer.is_global_zero)
        if not task.trainer.is_global_zero:
            continue
        node: Any = config["model"]
        for key in path.split("."):
            node = node[key]
        node = without(node, {"attention"})  # the machine that loads it chooses anew
        own = [module.fingerprint()] if hasattr(module, "fingerprint") else []
        save_module(folder / name, state, node, merge_fingerprints([layout, *own], str(folder)))
        run.log(f"{name}: {sum(t.numel() for t in state.values()):,} numbers in {folder / name}")


def set_threads(num_threads: int | None, processes: int = 1) -> None:
    """Threads of one process; by default the cores shared out among the local processes.

    Args:
        processes: how many this one is going to be; a launcher's environment has the last word.
    """
    import torch

    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", processes)))
    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // local))
