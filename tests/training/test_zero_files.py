from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omniaudio.errors import UserError
from omniaudio.training.zero_files import Reshard, check_checkpoint, load_without_code, num_processes, stretch


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"step": 3, "weight": torch.ones(2)}, tmp_path / "good.pt")
    assert load_without_code(str(tmp_path / "good.pt"))["step"] == 3
    torch.save({"step": Evil()}, tmp_path / "evil.pt")
    for mapped in (False, True):
        with pytest.raises(UserError, match=r"evil.pt: not a checkpoint of this training"):
            load_without_code(str(tmp_path / "evil.pt"), mapped=mapped)
    assert "code ran" not in capsys.readouterr().out


def test_a_checkpoint_of_another_strategy_is_one_line(tmp_path):
    (tmp_path / "file.ckpt").touch()
    for name, file in (
        ("zero1", "mp_rank_00_model_states.pt"),
        ("zero3", "zero_pp_rank_0_mp_rank_00_model_states.pt"),
    ):
        (tmp_path / name / "checkpoint").mkdir(parents=True)
        (tmp_path / name / "checkpoint" / file).touch()
    for checkpoint, reads in (
        ("file.ckpt", {"single", "ddp"}),
        ("zero1", {"zero1", "zero2"}),
        ("zero3", {"zero3"}),
    ):
        for strategy in ("single", "ddp", "zero1", "zero2", "zero3"):
            if strategy in reads:
                check_checkpoint(tmp_path / checkpoint, strategy)
                continue
            with pytest.raises(
                UserError, match=f"{checkpoint}: written under .*, strategy={strategy} does not read"
            ):
                check_checkpoint(tmp_path / checkpoint, strategy)


def test_a_stretch_of_pieces():
    pieces = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0])]
    assert stretch(pieces, 1, 3).tolist() == [2, 3, 4]
    assert stretch(pieces, 4, 3).tolist() == [5, 0, 0]
    assert stretch(pieces, 1, 3, end=3).tolist() == [2, 3, 0]
    assert stretch(pieces, 9, 2).tolist() == [0, 0]


def pieces_of(numbers: list[torch.Tensor], processes: int, each: bool) -> list[torch.Tensor]:
    """As ZeRO 3 cuts parameters, each by itself, or as ZeRO 1 and 2 cut all of them, to an even length."""
    if not each:
        numbers = [torch.cat(numbers)]
    step = 1 if each else 2
    found: list[list[torch.Tensor]] = [[] for _ in range(processes)]
    for tensor in numbers:
        length = -(-len(tensor) // (step * processes)) * step
        padded = torch.cat([tensor, torch.zeros(length * processes - len(tensor))])
        for rank, piece in enumerate(padded.split(length)):
            found[rank].append(piece)
    return [torch.cat(piece) for piece in found]


def write(folder: Path, processes: int, each: bool) -> dict[str, list[torch.Tensor]]:
    """A checkpoint with two groups, of 3 and 4, and of 5 numbers, and two frozen ones; what each process has of it."""
    folder.mkdir(parents=True)
    groups = [{"a": 3, "b": 4}, {"c": 5}]
    whole = [[torch.arange(size) + 10.0 * i + 1 for i, size in enumerate(group.values())] for group in groups]
    weights = [pieces_of(group, processes, each) for group in whole]
    moments = [pieces_of([-tensor for tensor in group], processes, each) for group in whole]
    frozen = pieces_of([torch.tensor([7.0, 8.0, 9.0])], processes, True)
    names = ("fp32_flat_groups", "optimizer_state_dict") if each else (
        "single_partition_of_fp32_groups", "base_optimizer_state")  # fmt: skip
    for rank in range(processes):
        state = {i: {"step": torch.tensor(6.0), "exp_avg": moments[i][rank]} for i in range(2)}
        optimizer = {
            names[0]: [group[rank] for group in weights],
            names[1]: {"state": state, "param_groups": ["kept"]},
        }
        prefix = f"zero_pp_rank_{rank}_"
        torch.save({"optimizer_state_dict": optimizer}, folder / f"{prefix}mp_rank_00_optim_states.pt")
        model = {
            "dp_world_size": processes, "batches_seen": 12,
            "param_shapes": [{name: torch.Size([size]) for name, size in group.items()} for group in groups],
            "frozen_param_fragments": {"f": frozen[rank] if each else torch.tensor([7.0, 8.0, 9.0])},
            "frozen_param_shapes": {"f": torch.Size([3])},
        }  # fmt: skip
        if each or rank == 0:
            torch.save(model, folder / f"{prefix if each else ''}mp_rank_00_model_states.pt")
    return {"weights": weights, "moments": moments, "frozen": frozen}


@pytest.mark.parametrize("each", [False, True], ids=["zero2", "zero3"])
@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (12, 5)])
def test_a_process_finds_what_it_would_have_written(tmp_path, each, before, now):
    write(tmp_path / "before" / "checkpoint", before, each)
    expected = write(tmp_path / "now" / "checkpoint", now, each)
    assert num_processes(tmp_path / "before") == before
    names = ("fp32_flat_groups", "optimizer_state_dict") if each else (
        "single_partition_of_fp32_groups", "base_optimizer_state")  # fmt: skip
    for rank in range(now):
        lengths = [len(group[rank]) for group in expected["weights"]]
        files = Reshard(tmp_path / "before", rank, now, lengths)
        (path,) = files.model_files("anything")
        model = files.load(path)
        assert (model["dp_world_size"], model["batches_seen"]) == (now, 12)
        frozen = expected["frozen"][rank] if each else torch.tensor([7.0, 8.0, 9.0])
        assert torch.equal(model["frozen_param_fragments"]["f"], frozen)
        found = files.load(f"nowhere/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        assert found[names[1]]["param_groups"] == ["kept"]
        for i in range(2):
            state = found[names[1]]["state"][i]
            assert torch.equal(found[names[0]][i], expected["weights"][i][rank])
            assert torch.equal(state["exp_avg"], expected["moments"][i][rank]) and state["step"] == 6
