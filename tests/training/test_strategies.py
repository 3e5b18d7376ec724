from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from omniaudio.errors import UserError
from omniaudio.training.strategies import (
    ZeroStrategy,
    check_processes,
    gathered_state,
    load_without_code,
    make_strategy,
)


def test_names():
    assert make_strategy("single") == "auto"
    assert isinstance(make_strategy("ddp"), DDPStrategy)
    with pytest.raises(UserError, match="strategy='zero4': allowed are"):
        make_strategy("zero4")


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


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"step": 3, "weight": torch.ones(2)}, tmp_path / "good.pt")
    assert load_without_code(str(tmp_path / "good.pt"))["step"] == 3
    torch.save({"step": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil.pt: not a checkpoint of this training"):
        load_without_code(str(tmp_path / "evil.pt"))
    assert "code ran" not in capsys.readouterr().out


def test_a_zero_checkpoint_of_other_processes_is_one_line(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    for rank in range(2):
        (tmp_path / f"checkpoint/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    check_processes(tmp_path, 2)
    with pytest.raises(
        UserError, match="written by 2 processes under ZeRO, which goes on with as many, not with 4"
    ):
        check_processes(tmp_path, 4)
