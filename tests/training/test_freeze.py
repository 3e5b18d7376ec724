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


def test_pieces_of_other_ranks_count(monkeypatch):
    """ZeRO 3 leaves each rank a piece; the hash is one of all pieces, so that none can move unseen."""
    module = nn.Linear(2, 2).requires_grad_(False)
    module.weight.ds_numel, module.weight.ds_tensor = (
        7,
        torch.ones(4),
    )  # of the second of two ranks: 3 and padding
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    elsewhere = ["a"]
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda pieces, own: pieces.__setitem__(slice(None), [own, {"weight": elsewhere[0]}]),
    )
    first = frozen_digests(module)
    module.weight.ds_tensor[3] = 5.0
    assert frozen_digests(module) == first, "padding does not count"
    module.weight.ds_tensor[2] = 5.0
    assert frozen_digests(module) != first
    module.weight.ds_tensor[2] = 1.0
    elsewhere[0] = "b"
    second = frozen_digests(module)
    assert second["weight"] != first["weight"] and second["bias"] == first["bias"]
