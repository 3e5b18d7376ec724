"""Low-rank adapters on the text backbone (LoRA, arXiv:2106.09685), by peft: a group of parameters like any other.

'backbone.lora={rank: 16}' 'task.trainable=["lm.backbone.layers.*.lora_*", "lm.audio_embed.*", "lm.audio_head.*"]'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from omniaudio.errors import UserError
from omniaudio.init import whole

BASE, ADAPTER = ".base_layer.", ".lora_"


def add_lora(
    model: nn.Module,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
) -> None:
    """Put adapters beside the linear maps of a model's layers; at first they change nothing.

    Args:
        rank: of the product that is added to a weight.
        alpha: the product counts alpha / rank.
        dropout: share of the adapter's inputs that is dropped in training.
        targets: names of linear maps of the layers (``q_proj``, ...); None: all of them.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise UserError(f"backbone.lora.rank: {rank} must be at least 1")
    maps = {
        name.rpartition(".")[2]: None for name, part in model.named_modules() if isinstance(part, nn.Linear)
    }
    if targets is not None and not targets:
        raise UserError(f"backbone.lora.targets: [] adapts nothing; null is all of {', '.join(maps)}")
    if wrong := sorted(set(targets or ()) - maps.keys()):
        raise UserError(f"backbone.lora.targets: {wrong[0]!r} is not one of {', '.join(maps)}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets or maps),
        init_lora_weights=False,
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:  # peft's own zeros miss what ZeRO 3 has sharded
            with whole([parameter]):
                nn.init.zeros_(parameter)


def adapted(
    state: Mapping[str, Tensor], ours: Mapping[str, Any], where: str = "weights"
) -> dict[str, Tensor]:
    """The state of a model without adapters as one of the same model with them, which keep their first weights.

    Args:
        state: names -> tensors.
        ours: those of the module that is to take it; without adapters, nothing changes.
        where: the state comes from, for messages.

    Raises:
        UserError: the module lacks the adapters that the state has.
    """
    there, here = (any(ADAPTER in name for name in names) for names in (state, ours))
    if there and not here:
        raise UserError(
            f"{where}: the weights have adapters and the config none: give backbone.lora as they were trained with"
        )
    if there or not here:
        return dict(state)
    left, found = dict(state), {}
    for name, tensor in ours.items():
        if ADAPTER in name:
            with whole([tensor]):
                found[name] = tensor.detach().cpu().clone()
        elif (plain := name.replace(BASE, ".")) in left:
            found[name] = left.pop(plain)
    return {**left, **found}


def are_idle(module: nn.Module) -> bool:
    """Whether a module has adapters and none of them changes anything yet."""
    up = [parameter for name, parameter in module.named_parameters() if ".lora_B." in name]
    return bool(up) and not any(parameter.is_meta or bool(parameter.any()) for parameter in up)


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """The module without its adapters; which parameters learn stays as it is (peft's own switch would change it)."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merged(state: Mapping[str, Tensor], rank: int, alpha: float) -> dict[str, Tensor]:
    """The state of the same model without adapters, which computes the same."""
    found = {name.replace(BASE, "."): tensor for name, tensor in state.items() if ADAPTER not in name}
    for name, down in state.items():
        if ".lora_A." in name:
            weight = name.partition(ADAPTER)[0] + ".weight"
            up = state[name.replace(".lora_A.", ".lora_B.")]
            found[weight] = found[weight] + (alpha / rank) * (up @ down)
    return found
