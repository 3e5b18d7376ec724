"""Gradient norms of losses, and weights that equalise them."""

import pytest
import torch
from torch import nn

from omniaudio.errors import UserError
from omniaudio.training.balance import GradientBalance


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2, bias=False)
        self.head = nn.Linear(2, 1)


def losses(module: Two) -> dict[str, torch.Tensor]:
    hidden = module.encoder(torch.tensor([[1.0, 2.0, 2.0]]))
    return {"small": hidden[0, 0], "large": 10 * hidden[0, 1], "aside": module.head(torch.ones(1, 2)).sum()}


def test_norms_are_those_of_the_weighted_losses() -> None:
    balance, module = GradientBalance(["encoder.*"]), Two()
    found = balance.measure(module, losses(module), {"small": 1.0, "large": 0.5, "aside": 1.0})
    assert found == pytest.approx({"small": 3.0, "large": 15.0, "aside": 0.0})
    assert all(parameter.grad is None for parameter in module.parameters()), (
        "a measurement leaves no gradient"
    )
    assert "large" not in balance.measure(module, losses(module), {"small": 1.0, "large": 0.0, "aside": 1.0})


def test_balanced_losses_pull_as_their_weights_say() -> None:
    given = {"small": 3.0, "large": 1.0, "aside": 2.0}
    balance, module = GradientBalance(["encoder.*"], equalise=True, decay=0.0), Two()
    assert balance.weights(given) == given, "before the first measurement"
    before = balance.measure(module, losses(module), given)
    weights = balance.weights(given)
    after = GradientBalance(["encoder.*"]).measure(module, losses(module), weights)
    assert after["small"] / after["large"] == pytest.approx(3.0)
    assert after["small"] + after["large"] == pytest.approx(before["small"] + before["large"])
    assert weights["aside"] == 2.0, "a loss that does not reach the parameters keeps its weight"


def test_without_equalise_the_weights_stay() -> None:
    balance, module = GradientBalance(["encoder.*"]), Two()
    balance.measure(module, losses(module), {"small": 1.0, "large": 1.0, "aside": 1.0})
    assert balance.weights({"small": 1.0, "large": 1.0}) == {"small": 1.0, "large": 1.0}


def test_averages_follow_slowly() -> None:
    balance, module = GradientBalance(["encoder.*"], decay=0.5), Two()
    for factor in (1.0, 2.0):
        given = {name: factor * loss for name, loss in losses(module).items()}
        balance.measure(module, given, {"small": 1.0, "large": 0.0, "aside": 0.0})
    assert balance.norms["small"] == pytest.approx(4.5)


def test_a_ramped_weight_pulls_as_it_says_now() -> None:
    balance, module = GradientBalance(["encoder.*"], equalise=True), Two()
    balance.measure(module, losses(module), {"small": 0.1, "large": 1.0, "aside": 0.0})
    weights = balance.weights({"small": 1.0, "large": 1.0, "aside": 0.0})  # ten times the weight of before
    after = GradientBalance(["encoder.*"]).measure(module, losses(module), weights)
    assert after["small"] == pytest.approx(after["large"])


def test_a_bad_batch_is_not_remembered() -> None:
    balance, module = GradientBalance(["encoder.*"], equalise=True, decay=0.5), Two()
    weights = {"small": 1.0, "large": 1.0, "aside": 0.0}
    balance.measure(module, losses(module), weights)
    before = dict(balance.norms)
    bad = {name: loss * float("inf") for name, loss in losses(module).items()}
    balance.measure(module, bad, weights)
    assert balance.norms == before


def test_patterns_must_match_and_numbers_make_sense() -> None:
    module = Two()
    with pytest.raises(UserError, match=r"\['nothing\.\*'\] match no trained parameter"):
        GradientBalance(["nothing.*"]).measure(module, losses(module), {})
    with pytest.raises(UserError, match="every_steps"):
        GradientBalance(["encoder.*"], every_steps=0)
