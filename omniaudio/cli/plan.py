"""What a training will need, before it is begun: parameters, memory on each device, operations and days.

Takes the keys of train. Parameters are counted without building them. Model states (weights, gradients, AdamW) follow
from strategy, devices and precision. Activations and operations are measured on this CPU: the same parts, as wide as
they are, but one and two layers deep, take steps on small batches, and both are drawn out in a line to the full depth
and batch. What kernels need inside, and the allocator's loss (some tenth on a GPU), comes on top. Of the data, where
they are there: hours, lengths, padding, shares by kind, epochs, and samples with what is learned in green. Writes
nothing.

    omniaudio plan experiment=<system>/tokenizer scale=full trainer=gpu strategy=zero2 devices=8
    omniaudio plan experiment=<system>/tokenizer scale=full schedule.tokenizer.batch_sec=240 measure=false
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from omniaudio.cli.doctor import memory_gb
from omniaudio.config import build
from omniaudio.errors import UserError

if TYPE_CHECKING:
    from omniaudio.training.needs import Line, ParameterCount
    from omniaudio.types import Batch

GIGABYTE = 1e9
SHOWN = 100_000  # fewer numbers in buffers (windows, filters) are no line of the table
FREE_SHARE = 0.7
"""Of this machine's memory, for weights and gradients of the measured parts; the rest is for their activations."""
AUDIO, TOKENS = "s of audio", "tokens"


def main(config: dict[str, Any]) -> None:
    """Print the plan."""
    from omniaudio.training.needs import ParameterCount, model_states

    mixed = config["trainer"]["precision"] == "bf16-mixed"
    devices = config["devices"] * config["num_nodes"]
    counts = parameter_counts(config)
    total = sum(counts.values(), ParameterCount(0, 0, 0))
    where = f"{devices} device{'s' * (devices > 1)}"
    print(f"{config['stage']}, {config['strategy']} on {where}, {config['trainer']['precision']}")
    width = max(map(len, counts))
    for name, count in [*counts.items(), ("all", total)]:
        learning = f"{count.learning / 1e6:>11,.1f} M learn" if count.learning else f"{'frozen':>19}"
        books = f"   {count.buffers / 1e6:,.1f} M in buffers" if count.buffers >= SHOWN else ""
        print(f"  {name:<{width}} {count.total / 1e6:>11,.1f} M parameters {learning}{books}")
    states = model_states(total, config["strategy"], devices, mixed)
    rows = [("weights", states.weights), ("gradients", states.gradients), ("AdamW", states.optimizer)]
    told = [f"{name} {value / GIGABYTE:.2f}" for name, value in rows]
    print(f"model states on each device: {states.total / GIGABYTE:.2f} GB ({', '.join(told)})")
    if config["offload"]:
        print("  offload=true: AdamW, and under zero3 the weights too, stand in host memory instead")
    if config["measure"]:
        print_needs(config, states.total, devices)
    if config["data_too"]:
        print_data(config, devices)


def print_data(config: dict[str, Any], devices: int) -> None:
    """What the training is going to read; one line if it is not there yet."""
    from rich.console import Console

    from omniaudio.data.preflight import preflight

    try:
        source = build(config["train_steps"], "train_steps")
        parts = devices * config["accumulate"]
        Console().print(preflight(source, config["max_steps"], parts, show=config["show"]))
    except UserError as error:
        print(f"data: {error}")


def print_needs(config: dict[str, Any], states: float, devices: int) -> None:
    """Measure, and say what the batch of the config comes to."""
    size, name = batch_size(config)
    if size is None:
        print("activations: not measured for this stage (its batches come from trained parts)")
        return
    unit = config["unit_sec"] if name == AUDIO else config["unit_tokens"]
    needed, memory = shallow_bytes(config) / GIGABYTE, memory_gb()
    if memory is not None and needed > FREE_SHARE * memory:
        print(
            f"activations: not measured; parts two layers deep need {needed:.0f} of the {memory:.0f} GB here"
        )
        return
    found, what = measure(config), "second" if name == AUDIO else "token"
    memory_line, operations = found["bytes"], found["operations"].per_unit / unit
    share = size / devices / config["accumulate"]
    need = memory_line.of(share / unit)
    print(
        f"activations: {memory_line.per_unit / unit / GIGABYTE:.3g} GB a {what}, "
        f"{memory_line.fixed / GIGABYTE:.3g} GB whatever the batch"
    )
    print(
        f"  {size:,.0f} {name} a step / {devices} devices / accumulate={config['accumulate']} = {share:,.0f}: "
        f"{need / GIGABYTE:.1f} GB, {(states + need) / GIGABYTE:.1f} GB with the model states"
    )
    total = operations * size * config["max_steps"]
    speed = devices * config["device_tflops"] * 1e12 * config["utilisation"]
    days = total / speed / 86400
    print(f"operations: {operations:.3g} a {what}, forward and backward")
    print(
        f"  {config['max_steps']:,} steps: {total:.3g}, {days:.3g} days at {config['utilisation']:.0%} "
        f"of {config['device_tflops']} TFLOP/s a device: {speed / operations:,.0f} {name} a second"
    )


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

    plain = {**copy.deepcopy(config), "init": {}}
    for name, node in plain["model"].items():
        if node["_target_"].endswith(".load_module"):  # a part trained before: what the config says of it
            plain["model"][name] = copy.deepcopy(config[name])
    _without_pretrained(plain["model"])
    if "text_tokenizer" in plain["task"]:
        words = ["some words of text, enough for a vocabulary of bytes"]
        plain["task"]["text_tokenizer"] = TextTokenizer.train(words, 300)
    return make_task(plain)


def _without_pretrained(node: Any) -> None:
    for key, value in node.items():
        if key == "pretrained":
            node[key] = None
        elif isinstance(value, dict):
            _without_pretrained(value)


def batch_size(config: dict[str, Any]) -> tuple[float | None, str]:
    """What a step holds over all devices, and its unit; None for stages that cannot be measured."""
    plan = config["schedule"][config["stage"]]
    if config["task"]["_target_"].endswith(".TokenizerTask"):
        return plan["batch_sec"], AUDIO
    if config["task"]["_target_"].endswith((".TextLMTask", ".AudioLMTask")):
        return plan["tokens_per_step"], TOKENS
    return None, ""


def shallow_bytes(config: dict[str, Any]) -> float:
    """Weights and gradients of the models that ``measure`` builds."""
    from omniaudio.training.needs import FP32, stacks_of, with_layers

    layers = {stack.path: min(2, stack.num_layers) for stack in stacks_of(config["model"])}
    counts = parameter_counts({**config, "model": with_layers(config["model"], layers)}).values()
    return float(sum(FP32 * (count.total + count.learning + 2 * count.buffers) for count in counts))


def measure(config: dict[str, Any]) -> dict[str, Line]:
    """Needs by name, from steps of shallow models."""
    from omniaudio.training.needs import draw_out, needs_of_step

    mixed = config["trainer"]["precision"] == "bf16-mixed"

    def needs(model: dict[str, Any], units: int) -> dict[str, float]:
        task = make_plain_task({**config, "model": model})
        task.configure_model()
        batch = make_batch(config, units)
        task.begin_step(batch)

        def loss() -> Any:
            terms = task.losses(batch, "train")
            weights = task.loss_weights
            return sum(weights[name] * term.total / max(1, int(term.count)) for name, term in terms.items())

        return needs_of_step(task, loss, mixed)

    return draw_out(config["model"], needs)


def make_batch(config: dict[str, Any], units: int) -> Batch:
    """``units`` clips or documents of the planned length, of noise."""
    import torch

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
    layouts, length = DocumentLayouts(space), config["unit_tokens"]
    if config["task"]["_target_"].endswith(".TextLMTask"):
        return pack([layouts.text("noise", [1] * (length - 1))] * units)
    num_text = length // 4  # a spoken document: the share of text in read speech at 12.5 frames a second
    codes_SK = torch.zeros(length - num_text - 3, space.num_books, dtype=torch.int64)
    return pack([layouts.tts("noise", [1] * num_text, codes_SK)] * units)
