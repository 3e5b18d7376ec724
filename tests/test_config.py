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


@pytest.mark.parametrize(
    "target", ["omniaudio.corpus.debian._run", "omniaudio._secret.run", "torch.nn._reduction.x"]
)
def test_private_targets_are_refused(target):
    with pytest.raises(UserError, match="not allowed.*none is private"):
        build({"_target_": target})


@pytest.mark.parametrize(
    "target",
    [
        "omniaudio.files.write_whole",  # writes any file
        "omniaudio.corpus.folder.AudioFolder",  # reads any folder
        "omniaudio.frontend.vocabulary.make_vocabulary",  # a function, writes
        "torch.optim.SGD",
        "transformers.get_scheduler",
    ],
)
def test_a_folder_of_weights_builds_nothing_but_parts(target):
    node = {"layers": [{"_target_": target, "path": "x", "content": "y"}]}
    with pytest.raises(UserError, match=r"layers\[0\]\._target_.*not allowed"):
        build(node, _parts_only=True)
    assert isinstance(build({"_target_": "torch.nn.ReLU"}, _parts_only=True), torch.nn.ReLU)


def test_unknown_targets_and_arguments_name_their_place():
    with pytest.raises(UserError, match="a.b._target_.*does not exist"):
        build({"b": {"_target_": "torch.nn.Nothing"}}, "a")
    with pytest.raises(UserError, match="a.b: Linear.*width"):
        build({"b": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "width": 3}}, "a")
