from __future__ import annotations

import functools

import pytest
import torch

from omniaudio.config import build, factory
from omniaudio.errors import UserError


def test_builds_nested_targets_and_partials():
    node = {"layers": [{"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}], "n": 1}
    built = build(node)
    assert isinstance(built["layers"][0], torch.nn.Linear) and built["n"] == 1
    optim = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1})
    assert isinstance(optim, functools.partial) and optim.keywords == {"lr": 0.1}
    assert build(node["layers"][0], bias=False).bias is None


def test_a_factory_builds_anew_each_time():
    make = factory({"_target_": "torch.nn.ReLU"})
    assert make() is not make()


@pytest.mark.parametrize("target", ["torch.load", "os.system", "builtins.eval", "subprocess.run", 3])
def test_targets_outside_the_allowlist_are_refused(target):
    with pytest.raises(UserError, match="model.x._target_.*not allowed"):
        build({"x": {"_target_": target, "f": "a"}}, "model")


def test_unknown_targets_and_arguments_name_their_place():
    with pytest.raises(UserError, match="a.b._target_.*does not exist"):
        build({"b": {"_target_": "torch.nn.Nothing"}}, "a")
    with pytest.raises(UserError, match="a.b: Linear.*width"):
        build({"b": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "width": 3}}, "a")
