"""What a training will need, before it is begun: parameters, memory on each device, operations and days.

Takes the keys of train, and needs neither data nor GPU nor the memory of the model: tensors have shapes here and no
numbers. Model states (weights, gradients, AdamW) follow from strategy, devices and precision. Activations and
operations are measured: the same parts, as wide as they are, but one and two layers deep, take steps on small batches,
and both are drawn out in a line to the full depth and batch. What kernels need inside, and the allocator's loss, is
left free by memory_share. Of the data, where they are there: hours, lengths, padding, shares by kind, epochs, and
samples with what is learned in green. Writes nothing.

    omniaudio plan experiment=<system>/pretrain_stage2 scale=full strategy=zero3 gpus=64
    omniaudio plan experiment=<system>/pretrain_stage1 scale=full strategy=zero2 gpus=8 gpu=h100_80gb tokens=5e9
    omniaudio plan experiment=<system>/tokenizer scale=full trainer=gpu strategy=zero2 devices=8
    omniaudio plan experiment=<system>/sft scale=mini --show 8 measure=false    # samples of what it reads
    omniaudio plan data=NAME                # no training: hours and lengths of what is prepared, built or joined
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniaudio.cli.doctor import memory_gb
from omniaudio.config import build
from omniaudio.errors import UserError

if TYPE_CHECKING:
    from omniaudio.training.needs import Line, Memory, ParameterCount
    from omniaudio.types import Batch

GIGABYTE, DAY = 1e9, 86400
SHOWN = 100_000  # fewer numbers in buffers (windows, filters) are no line of the table
NODE = 8  # GPUs of a machine, where devices does not say
AUDIO, TOKENS = "s of audio", "tokens"
OTHERS = (("zero2", False), ("zero3", False), ("zero2", True), ("zero3", True))
"""Strategies, with and without offload, that are looked at when memory is too small."""
PAIRS = ".PreferenceTask"  # what its steps are planned of are two documents each


def main(config: dict[str, Any]) -> None:
    """Print the plan."""
    from omniaudio.cli.train import with_accumulate
    from omniaudio.training.needs import ParameterCount

    if "train_steps" not in config:  # conf/plan_data.yaml
        print_folder(Path(config["data_dir"]))
        return
    config, show = with_accumulate(with_gpus(config)), config["show"]
    if not isinstance(show, int) or isinstance(show, bool) or show < 0:
        raise UserError(f"show={show}: must be a whole number of samples, 0 for none")
    if config["strategy"] == "single" and (devices := num_devices(config)) > 1:
        raise UserError(
            f"strategy=single is of one device, not of {devices}; say strategy=ddp, zero1, zero2 or zero3"
        )
    counts = parameter_counts(config)
    total = sum(counts.values(), ParameterCount(0, 0, 0))
    print_head(config)
    width = max(map(len, counts))
    for name, count in [*counts.items(), ("all", total)]:
        learning = f"{count.learning / 1e6:>11,.1f} M learn" if count.learning else f"{'frozen':>19}"
        books = f"   {count.buffers / 1e6:,.1f} M in buffers" if count.buffers >= SHOWN else ""
        print(f"  {name:<{width}} {count.total / 1e6:>11,.1f} M parameters {learning}{books}")
    total = with_reference(config, total)
    print_states(memory_of(config, total, config["strategy"], config["offload"]))
    if config["measure"]:
        print_needs(config, total)
    if config["data_too"]:
        print_data(config, num_devices(config))


def with_gpus(config: dict[str, Any]) -> dict[str, Any]:
    """The config with ``gpus`` said as devices x num_nodes, and with a trainer that has GPUs.

    Raises:
        UserError: no number, or one that cannot be shared out among machines.
    """
    gpus, devices, nodes = (config[name] for name in ("gpus", "devices", "num_nodes"))
    if gpus is None:
        return config
    if not isinstance(gpus, int) or gpus < 1:
        raise UserError(f"gpus={gpus}: must be a whole number, at least 1")
    if nodes == 1:
        devices = devices if devices > 1 else min(gpus, NODE)
        nodes = gpus // devices
    elif devices == 1:
        devices = gpus // nodes
    if devices * nodes != gpus:
        raise UserError(
            f"gpus={gpus}: is not {nodes} nodes x {devices} devices; above {NODE} give a multiple of {NODE}, "
            "or devices=N of one node beside it"
        )
    trainer = config["trainer"]
    if trainer["accelerator"] != "gpu":
        trainer = {**trainer, "accelerator": "gpu", "precision": "bf16-mixed"}
    return {**config, "devices": devices, "num_nodes": nodes, "trainer": trainer}


def with_reference(config: dict[str, Any], count: ParameterCount) -> ParameterCount:
    """With the copy that a training on preferences keeps of all that learns but adapters, on every device.

    Raises:
        UserError: ZeRO 3, which such a training refuses.
    """
    if not config["task"]["_target_"].endswith(PAIRS):
        return count
    if config["strategy"] == "zero3":
        raise UserError(
            "strategy=zero3: a training beside its start model needs whole weights; use zero2 or ddp"
        )
    adapters = "lora_" in str(config["task"]["trainable"])
    return count if adapters else dataclasses.replace(count, buffers=count.buffers + count.learning)


def num_devices(config: dict[str, Any]) -> int:
    """Devices of the whole training."""
    return int(config["devices"] * config["num_nodes"])


def is_mixed(config: dict[str, Any]) -> bool:
    """Whether the training computes in bfloat16."""
    return bool(config["trainer"]["precision"] == "bf16-mixed")


def on_gpu(config: dict[str, Any]) -> bool:
    """Whether the training is one on GPUs."""
    return bool(config["trainer"]["accelerator"] == "gpu")


def print_head(config: dict[str, Any]) -> None:
    """What is planned, and what is assumed of the device."""
    devices, nodes = num_devices(config), config["num_nodes"]
    kind = "GPU" if on_gpu(config) else "device"
    where = f"{devices} {kind}{'s' * (devices > 1)}" + f" ({nodes} nodes x {config['devices']})" * (nodes > 1)
    precision = "bf16-mixed" if is_mixed(config) else "32-true"
    print(f"{config['stage']}, {config['strategy']} on {where}, {precision}")
    if on_gpu(config):
        gpu = config["gpu"]
        print(
            f"  assumed: {gpu['name']}, {peak_tflops(config):g} TFLOP/s at {config['utilisation']:.0%}, "
            f"{gpu['memory_gb']} GB of which {config['memory_share']:.0%} may be filled "
            "(gpu=NAME, utilisation=, memory_share=)"
        )


def peak_tflops(config: dict[str, Any]) -> float:
    """Of one device, in the precision of the training."""
    return float(config["gpu"]["tflops_bf16" if is_mixed(config) else "tflops_fp32"])


def memory_of(config: dict[str, Any], count: ParameterCount, strategy: str, offload: bool) -> Memory:
    """Of one device of this training under a strategy."""
    from omniaudio.training.needs import Sharing, device_memory

    sharing = Sharing(strategy, num_devices(config), is_mixed(config), offload, config["accumulate"])
    return device_memory(count, sharing)


def print_states(memory: Memory) -> None:
    """Bytes that stay."""
    states = memory.states
    rows = [("weights", states.weights), ("gradients", states.gradients), ("AdamW", states.optimizer)]
    told = [f"{name} {value / GIGABYTE:.2f}" for name, value in rows]
    print(f"model states on each device: {states.total / GIGABYTE:.2f} GB ({', '.join(told)})")
    if states.host:
        print(f"  and {states.host / GIGABYTE:.2f} GB in host memory for each device (offload=true)")
    if memory.workspace:
        print(
            f"  during a step {memory.workspace / GIGABYTE:.2f} GB more: buckets of gradients, and under zero3 weights "
            "gathered whole"
        )


def print_data(config: dict[str, Any], devices: int) -> None:
    """What the training is going to read; one line if it is not there yet."""
    from omniaudio.data.preflight import preflight
    from omniaudio.progress import table_console

    try:
        source = build(config["train_steps"], "train_steps")
        parts = devices * config["accumulate"]
        table_console().print(preflight(source, config["max_steps"], parts, show=config["show"]))
    except UserError as error:
        print(f"data: {error}")


def print_folder(data_dir: Path) -> None:
    """What every split of a folder holds.

    Raises:
        UserError: nothing is prepared there.
    """
    from omniaudio.data.index import listed_splits
    from omniaudio.data.preflight import contents
    from omniaudio.data.shards import ShardReader
    from omniaudio.progress import table_console

    folder = data_dir / "shards" if (data_dir / "shards").is_dir() else data_dir
    splits = listed_splits(folder)
    if not splits:
        raise UserError(
            f"{folder}: nothing is prepared there; say data=NAME of `omniaudio prepare`, build or join, or data_dir=DIR"
        )
    for split in splits:
        table_console().print(contents(ShardReader(folder, split)))


def print_needs(config: dict[str, Any], count: ParameterCount) -> None:
    """Measure, and say what the batch of the config comes to."""
    size, name = batch_size(config)
    if size is None:
        print("activations: not measured for this stage (its batches come from trained parts)")
        return
    what = "second" if name == AUDIO else "token"
    found, unit = measure(config), unit_of(config)
    memory_line, operations = found["bytes"], found["operations"].per_unit / unit
    share = size / num_devices(config) / config["accumulate"]
    activations = memory_line.of(share / unit)
    print(
        f"activations: {memory_line.per_unit / unit / GIGABYTE:.3g} GB a {what}, "
        f"{memory_line.fixed / GIGABYTE:.3g} GB whatever the batch"
    )
    parts = f"{num_devices(config)} devices / accumulate={config['accumulate']}"
    print(f"  {size:,.0f} {name} a step / {parts} = {share:,.0f}: {activations / GIGABYTE:.1f} GB")
    print_fit(config, count, memory_line, share)
    print_days(config, operations, size)


def memory_limit(config: dict[str, Any]) -> float | None:
    """Bytes of a device that may be filled; None if this machine does not say."""
    if on_gpu(config):
        return float(config["gpu"]["memory_gb"] * config["memory_share"] * GIGABYTE)
    here = memory_gb()
    return None if here is None else here * config["memory_share"] * GIGABYTE / config["devices"]


def print_fit(config: dict[str, Any], count: ParameterCount, line: Line, share: float) -> None:
    """Whether the batch fits into a device, the largest that does, and what else would do."""
    limit = memory_limit(config)
    memory = memory_of(config, count, config["strategy"], config["offload"])
    need = memory.peak(line.of(share / unit_of(config)))
    if limit is None:
        print(f"memory: {need / GIGABYTE:.1f} GB a device; this machine does not say what it has")
        return
    fits, name = need <= limit, batch_size(config)[1]
    print(f"memory: {need / GIGABYTE:.1f} of {limit / GIGABYTE:.1f} GB: {'fits' if fits else 'does NOT fit'}")
    most = largest_batch(config, memory, line, limit)
    print(
        f"  largest batch of a device that fits: {most:,.0f} {name}"
        if most
        else "  no batch fits: model states and workspace alone are too large"
    )
    if not fits:
        for advice in ways_out(config, count, line, share, limit, most):
            print(f"  {advice}")


def largest_batch(config: dict[str, Any], memory: Memory, line: Line, limit: float) -> float:
    """In tokens or seconds, whole documents or clips; 0 if not one fits."""
    room = memory.room(limit) - line.fixed
    units = int(room / max(1.0, line.per_unit)) if room > 0 else 0
    return units * float(unit_of(config))


def ways_out(
    config: dict[str, Any], count: ParameterCount, line: Line, share: float, limit: float, most: float
) -> list[str]:
    """What would make a batch fit that does not."""
    advice = []
    if most:
        parts = config["accumulate"] * -(-share // most)
        advice.append(f"would fit: accumulate={parts:.0f}")
    if not on_gpu(config) and not config["strategy"].startswith("zero"):
        return advice
    if not config["strategy"].startswith("zero") and is_mixed(config):
        line = measure({**config, "strategy": "zero2"})["bytes"]  # there the weights are bfloat16 themselves
    whole = config["task"]["_target_"].endswith(PAIRS)  # weights
    for strategy, offload in OTHERS:
        if (strategy, offload) == (config["strategy"], config["offload"]) or (whole and strategy == "zero3"):
            continue
        memory = memory_of(config, count, strategy, offload)
        need = memory.peak(line.of(share / unit_of(config)))
        words = f"strategy={strategy}" + " offload=true" * offload
        batch = largest_batch(config, memory, line, limit)
        less = f"; batches of up to {batch:,.0f} would" if need > limit and batch else ""
        verdict = "would fit" if need <= limit else "would not fit"
        host = f", {memory.states.host / GIGABYTE:.1f} GB in host memory" if offload else ""
        advice.append(f"{verdict}: {words} ({need / GIGABYTE:.1f} GB{host}){less}")
    return advice


def print_days(config: dict[str, Any], operations: float, size: float) -> None:
    """Operations, speed and days; of a CPU nothing is promised.

    Args:
        operations: a token or second.
        size: tokens or seconds of a step.
    """
    name = batch_size(config)[1]
    per_hour = 3600 if name == AUDIO else 1
    wanted = config["hours"] if name == AUDIO else config["tokens"]
    total = operations * size * config["max_steps"]
    print(f"operations: {operations:.3g} a {'second' if name == AUDIO else 'token'}, forward and backward")
    steps = f"{config['max_steps']:,} steps: {total:.3g}"
    if not on_gpu(config):
        print(f"  {steps}; how long they take on CPUs is not known, gpus=N says it for GPUs")
        return
    speed = num_devices(config) * peak_tflops(config) * 1e12 * config["utilisation"] / operations
    print(f"  {speed:,.0f} {name} a second on all devices")
    print(f"  {steps}, {size * config['max_steps'] / speed / DAY:.3g} days")
    if wanted is not None:
        many = f"{wanted:,.0f} hours" if name == AUDIO else f"{wanted / 1e9:,.4g} B {name}"
        print(f"  {many}: {wanted * per_hour / speed / DAY:.3g} days")


def parameter_counts(config: dict[str, Any]) -> dict[str, ParameterCount]:
    """Parts of the model -> numbers; nothing is allocated."""
    import torch

    from omniaudio.training.needs import count_parameters

    with torch.device("meta"):
        task = make_plain_task(config)
        task.configure_model()
    counts = {}
    for name, module in task.named_children():
        whole = count_parameters(module)
        parts = {f"{name}.{child}": count_parameters(part) for child, part in module.named_children()}
        if sum(part.total for part in parts.values()) != whole.total:
            parts = {name: whole}  # some belong to no part, or to two
        counts.update({part: count for part, count in parts.items() if count.total or count.buffers >= SHOWN})
    return counts


def make_plain_task(config: dict[str, Any]) -> Any:
    """The task with random weights, whatever it would start from, and a text tokenizer made on the spot."""
    from omniaudio.cli.train import make_task
    from omniaudio.frontend.text import TextTokenizer
    from omniaudio.training.artifacts import without_pretrained

    plain = {**copy.deepcopy(config), "init": {}}
    for name, node in plain["model"].items():
        if node["_target_"].endswith(".load_module"):  # a part trained before: what the config says of it
            plain["model"][name] = copy.deepcopy(config[name])
    plain["model"] = without_pretrained(plain["model"])
    if "text_tokenizer" in plain["task"]:
        words = ["some words of text, enough for a vocabulary of bytes"]
        plain["task"]["text_tokenizer"] = TextTokenizer.train(words, 300)
    return make_task(plain)


def batch_size(config: dict[str, Any]) -> tuple[float | None, str]:
    """What a step holds over all devices, and its unit; None for stages that cannot be measured."""
    plan = config["schedule"][config["stage"]]
    if config["task"]["_target_"].endswith(".TokenizerTask"):
        return plan["batch_sec"], AUDIO
    if config["task"]["_target_"].endswith((".TextLMTask", ".AudioLMTask", PAIRS)):
        return plan["tokens_per_step"], TOKENS
    return None, ""


def unit_of(config: dict[str, Any]) -> float:
    """Length of a document or clip of the measured batches."""
    return float(config["unit_sec"] if batch_size(config)[1] == AUDIO else config["unit_tokens"])


def measure(config: dict[str, Any]) -> dict[str, Line]:
    """Needs by name, from steps of shallow models without storage."""
    import torch

    from omniaudio.training.hollow import hollow
    from omniaudio.training.needs import draw_out, needs_of_step

    mixed = is_mixed(config)

    def needs(model: dict[str, Any], units: int) -> dict[str, float]:
        with torch.device("meta"):
            one_batch = {**config, "model": model, "accumulate": 1}  # of a step of several, too
            task = make_plain_task(one_batch)
            task.configure_model()
        if mixed and config["strategy"].startswith("zero"):
            task.to(torch.bfloat16)
        hollow(task)
        if (reference := getattr(task, "reference", None)) is not None:  # its weights have no storage either
            reference.kept = {name: task.lm.get_parameter(name).detach() for name in reference.kept}
        return needs_of_step(task, step_loss(task, make_batch(config, units)), mixed)

    return draw_out(config["model"], needs)


def step_loss(task: Any, batch: Batch) -> Callable[[], Any]:
    """The weighted loss of a training step on this batch."""
    task.begin_step(batch)

    def loss() -> Any:
        terms = task.losses(batch, "train")
        weights = task.loss_weights
        return sum(weights[name] * term.total / max(1, int(term.count)) for name, term in terms.items())

    return loss


def make_batch(config: dict[str, Any], units: int) -> Batch:
    """``units`` clips or documents of the planned length, of noise."""
    import torch

    from omniaudio.data.document_steps import num_framing
    from omniaudio.data.pairs import CHOSEN, REJECTED
    from omniaudio.sequence.spans import DocumentLayouts, pack
    from omniaudio.types import WaveBatch

    draws = torch.Generator().manual_seed(0)
    if batch_size(config)[1] == AUDIO:
        rate_hz = config["train_steps"]["sample_rate_hz"]
        num_samples = round(config["unit_sec"] * rate_hz)
        return WaveBatch(
            keys=["noise"] * units,
            wav_BN=0.1 * torch.randn(units, num_samples, generator=draws),
            num_samples_B=torch.full((units,), num_samples),
            sample_rate_hz=rate_hz,
            kinds=["asr"] * units,
            texts=["words " * round(2 * config["unit_sec"])] * units,
            languages=["en"] * units,
        )
    space = build(config["train_steps"]["token_space"], "train_steps.token_space")
    each = 2 if config["task"]["_target_"].endswith(PAIRS) else 1
    layouts, length, framing = DocumentLayouts(space), config["unit_tokens"] // each, num_framing(space)
    if config["task"]["_target_"].endswith(".TextLMTask"):
        return pack([layouts.text("noise", [1] * (length - framing))] * units)
    num_text = length // 4  # a spoken document: the share of text in read speech at 12.5 frames a second
    codes_SK = torch.zeros(length - num_text - framing - 2, space.num_books, dtype=torch.int64)
    batch = pack([layouts.tts("noise", [1] * num_text, codes_SK)] * units * each)
    if each == 2:
        batch.kinds = [CHOSEN, REJECTED] * units
    return batch
