from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from omniaudio.errors import UserError
from omniaudio.training.freeze import (
    FreezeProof,
    apply_trainable,
    frozen_digests,
    lr_factors,
    part_of,
    set_training_mode,
)


def make() -> nn.ModuleDict:
    return nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "b": nn.Linear(2, 2)})


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_patterns_give_and_take():
    module = make()
    apply_trainable(module, ["*", "!a.1.*"])
    assert trained(module) == {"a.0.weight", "a.0.bias", "b.weight", "b.bias"}
    apply_trainable(module, ["b.w*"])
    assert trained(module) == {"b.weight"}


def test_a_pattern_without_a_match_is_an_error():
    for pattern in ("c.*", "!c.*"):
        with pytest.raises(UserError, match="matches no parameter; there are a.0, a.1, b.bias, b.weight"):
            apply_trainable(make(), ["*", pattern])


def test_text_tables_are_parts_of_their_own():
    names = ("embed_tokens.weight", "lm_head.weight", "layers.0.mlp.up_proj.weight", "norm.weight")
    parts = ["embed_tokens", "lm_head", "layers", "norm"]
    assert [part_of(f"backbone.{name}") for name in names] == [f"backbone.{part}" for part in parts]
    assert [part_of(f"lm.backbone.{name}") for name in names] == [
        "lm.backbone.embed_tokens", "lm.backbone.lm_head", "lm.backbone", "lm.backbone",
    ]  # fmt: skip
    assert [part_of(name) for name in ("a", "b.weight", "lm.audio_embed.0.weight", "lm.backbone")] == [
        "a", "b.weight", "lm.audio_embed", "lm.backbone",
    ]  # fmt: skip


def test_frozen_modules_stay_in_eval_mode_and_their_buffers_count():
    module = make()
    apply_trainable(module, ["b.*"])
    set_training_mode(module, True)
    assert module["b"].training and not module["a"][1].training
    assert {"a.0.weight", "a.1.running_mean"} <= frozen_digests(module).keys()
    set_training_mode(module, False)
    assert not module["b"].training


def test_the_proof_holds_and_names_what_moved(tmp_path):
    module = make()
    apply_trainable(module, ["b.*"])
    proof = FreezeProof(tmp_path / "freeze.json")
    proof.before(module, resumed=False)
    with torch.no_grad():
        module["b"].weight.add_(1)
    proof.after(module)
    record = json.loads(proof.path.read_text())
    assert all(before == after for before, after in record["frozen"].values()) and record["frozen"]
    assert record["trained"] == ["b.weight", "b.bias"]
    with torch.no_grad():
        module["a"][0].bias[0] += 1e-6
    proof.before(module, resumed=True)  # a resumed run keeps the first hashes
    with pytest.raises(RuntimeError, match="frozen tensors moved.*a.0.bias"):
        proof.after(module)


def test_a_tied_weight_is_found_under_both_of_its_names():
    module = nn.ModuleDict(
        {"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False), "b": nn.Linear(2, 2)}
    )
    module["head"].weight = module["embed"].weight
    apply_trainable(module, ["*", "!embed.*", "!head.*"])
    assert trained(module) == {"b.weight", "b.bias"}
    apply_trainable(module, ["head.*"])
    assert trained(module) == {"embed.weight"}
    assert lr_factors(module, {"head.*": 0.5})[module["embed"].weight] == 0.5


def test_what_another_rank_has_counts(monkeypatch):
    """A tensor that is the same everywhere has the hash of one process, under ZeRO 3 from the pieces of all ranks."""
    module = nn.Linear(2, 3).requires_grad_(False)
    alone = frozen_digests(module)
    theirs = {**alone}
    second = torch.cat([module.weight.flatten()[4:], torch.zeros(2)])  # 2 of 6 numbers, and padding
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        distributed, "all_gather_object", lambda found, own: found.__setitem__(slice(None), [own, theirs])
    )
    monkeypatch.setattr(
        distributed, "all_gather", lambda found, own: found.__setitem__(slice(None), [own, second])
    )
    assert frozen_digests(module) == alone
    module.weight.ds_numel, module.weight.ds_tensor = 6, module.weight.flatten()[:4].clone()
    assert frozen_digests(module) == alone
    second[3] = 5.0
    assert frozen_digests(module) == alone, "padding does not count"
    second[1] = 5.0
    assert frozen_digests(module)["weight"] != alone["weight"]
    theirs["bias"] = "other"
    assert frozen_digests(module)["bias"] != alone["bias"]
