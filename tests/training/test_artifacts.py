from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from omniaudio.errors import UserError
from omniaudio.training.artifacts import (
    load_module,
    load_weights,
    read_fingerprint,
    save_module,
    without_pretrained,
)

CONFIG = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}


def test_round_trip(tmp_path):
    module = torch.nn.Linear(2, 3)
    for _ in range(2):  # writing again replaces the folder
        save_module(tmp_path / "part", module.state_dict(), CONFIG, {"a": 1})
    loaded = load_module(tmp_path / "part")
    assert torch.equal(loaded.weight, module.weight) and not loaded.training
    assert read_fingerprint(tmp_path / "part") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["part"]


def test_a_part_that_names_another_kind_of_thing_is_refused(tmp_path):
    hostile = {"_target_": "omniaudio.files.write_whole", "path": str(tmp_path / "ran"), "content": "x"}
    save_module(tmp_path / "part", torch.nn.Linear(2, 3).state_dict(), hostile, {})
    with pytest.raises(UserError, match="not allowed"):
        load_module(tmp_path / "part")
    assert not (tmp_path / "ran").exists()


def test_every_mismatch_is_named(tmp_path):
    save_file({"weight": torch.zeros(3, 1), "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"missing bias; unused extra; weight is \(3, 1\) there, \(3, 2\) here"
    ):
        load_weights(torch.nn.Linear(2, 3), tmp_path)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-3])
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "cut")
    with pytest.raises(UserError, match="model.safetensors is missing"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "nowhere")


def test_an_artefact_asks_no_hub():
    config = {"encoder": {"pretrained": "some/model", "width": 2}, "list": [{"pretrained": "x"}]}
    assert without_pretrained(config) == {
        "encoder": {"pretrained": None, "width": 2},
        "list": [{"pretrained": None}],
    }
