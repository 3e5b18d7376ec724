from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from omniaudio.errors import UserError
from omniaudio.training.strategies import ZeroStrategy, gathered_state, make_strategy


def test_names():
    assert make_strategy("single") == "auto"
    assert isinstance(make_strategy("ddp"), DDPStrategy)
    with pytest.raises(UserError, match="strategy='zero4': allowed are"):
        make_strategy("zero4")
    for name in ("single", "ddp"):
        with pytest.raises(
            UserError, match=f"offload=true: strategy={name} .*allowed with zero1, zero2, zero3"
        ):
            make_strategy(name, offload=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_and_offload(stage):
    strategy = make_strategy(f"zero{stage}", offload=True)
    assert isinstance(strategy, ZeroStrategy) and isinstance(strategy.config, dict)
    zero = strategy.config["zero_optimization"]
    assert zero["stage"] == stage and zero["offload_optimizer"]["device"] == "cpu"
    assert ("offload_param" in zero) == (stage == 3)


def test_gathered_state_is_a_copy():
    module = torch.nn.Linear(2, 2)
    state = gathered_state(module)
    assert torch.equal(state["weight"], module.weight)
    state["weight"].zero_()
    assert module.weight.abs().sum() > 0
