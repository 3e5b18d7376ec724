"""Whether a kind of language model is computed here as transformers computes it: tried at a small size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omniaudio.errors import UserError
from omniaudio.init import unsharded
from omniaudio.lm.attention import register

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from omniaudio.lm.backbone import CausalBackbone

HEADS, VOCAB, FFN, WINDOW, CAP = 4, 32, 24, 3, 2.0
DOCUMENTS = (4, 5)
"""Lengths of the two documents of the trial; longer than ``WINDOW``."""
TOLERANCE = 1e-4
"""Largest difference of a logit, of the logits' standard deviation."""


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same kind with few layers, one of each type; what a layer computes by its other entries stays."""
    found = config.to_dict()
    width = found.get("head_dim") or config.hidden_size // config.num_attention_heads
    kv = config.num_key_value_heads
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HEADS * width,
        "num_attention_heads": HEADS,
        "num_key_value_heads": {1: 1, config.num_attention_heads: HEADS}.get(kv, HEADS // 2),
        **{name: FFN for name, value in found.items() if name.endswith("intermediate_size") and value},
        "num_hidden_layers": min(2, config.num_hidden_layers),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if types := found.get("layer_types"):
        sizes["layer_types"] = list(dict.fromkeys(types))
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    if found.get("sliding_window"):
        sizes["sliding_window"] = WINDOW
    sizes.update({name: CAP for name, value in found.items() if name.endswith("softcapping") and value})
    kept = {name: value for name, value in found.items() if name not in ("model_type", "dtype", *sizes)}
    return type(config)(**copy.deepcopy(kept), **sizes)


def prove_alike(config: PreTrainedConfig, around: Callable[[Any], CausalBackbone]) -> None:
    """Hold a small model of a kind against its own forward pass, in packed documents and in steps with a cache.

    Args:
        config: of the kind; its sizes are made small, its other entries count.
        around: a backbone around a model of transformers.

    Raises:
        UserError: it is not computed here as there.
    """
    of_run = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with unsharded(), torch.device("cpu"), torch.random.fork_rng(devices=()), torch.no_grad():
        torch.default_generator.manual_seed(0)  # that of the CPU: those of GPUs stay as they are
        try:
            fault = _difference(small_config(config), around)
        except Exception as error:  # whatever another model's code does not bear
            fault = reason_of(error)
        finally:
            torch.set_default_dtype(of_run)
    if fault:
        raise UserError(
            f"backbone.model_type: a {config.model_type!r} of this config is not computed here as transformers does "
            f"({fault}); see OtherBackbone for what can be"
        )


def reason_of(error: Exception) -> str:
    """What went wrong in another library, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"


def _difference(config: PreTrainedConfig, around: Callable[[Any], CausalBackbone]) -> str:
    """What differs, in words; empty if nothing does."""
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    for weight in theirs.parameters():  # far from the first weights, among which much is 0 or 1
        spread = 2.0 / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.3
        weight.copy_(0.3 * weight.nan_to_num() + spread * torch.randn(weight.shape))
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=register())
    model.load_state_dict(theirs.state_dict())
    ours = around(model).eval()
    ids_L = torch.randint(VOCAB, (sum(DOCUMENTS),))
    first_L, second_L = ids_L.split(DOCUMENTS)
    expected_LV = torch.cat([theirs(part[None]).logits[0] for part in (first_L, second_L)])
    embeds_LD = ours.embed_text(ids_L)
    packed_LV = ours.lm_head(ours(embeds_LD, DOCUMENTS))
    cache = ours.new_cache()
    stepped = [ours.step(part, cache) for part in embeds_LD[DOCUMENTS[0] :].split([3, 1, 1])]
    stepped_LV = ours.lm_head(torch.cat(stepped))
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "packed documents": (packed_LV, expected_LV),
        "steps with a cache": (stepped_LV, expected_LV[DOCUMENTS[0] :]),
    }
    for name, (found, wanted) in pairs.items():
        largest = float((found - wanted).abs().max() / wanted.std())
        if not largest <= TOLERANCE:  # not a number, too
            return f"logits of {name} differ by {largest:.2g} of their spread"
    return ""
