"""How a training is spread: one device, DDP, or DeepSpeed ZeRO 1, 2, 3, by the same names on CPU and GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import nn

from omniaudio.errors import UserError


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO that also runs on CPU processes (gloo), and divides accumulated gradients once.

    Lightning's strategy refuses CPUs, though DeepSpeed runs there; and with accumulation both Lightning and
    DeepSpeed divide the gradient by the number of batches.
    """

    @property
    def on_cpu(self) -> bool:
        return not torch.cuda.is_available()

    def setup_environment(self) -> None:
        if self.on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self.on_cpu else super().root_device

    def setup_distributed(self) -> None:
        if not self.on_cpu:
            super().setup_distributed()
            return
        import deepspeed

        reset_seed()
        self.set_world_ranks()
        os.environ["LOCAL_SIZE"] = str(self.num_processes)
        # The shared-memory collective compiles on first use; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._init_deepspeed_distributed()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self.deepspeed_engine.checkpoint_engine.load = load_without_code
        return super().load_checkpoint(checkpoint_path, weights_only)

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)


def load_without_code(path: str, map_location: Any = None) -> Any:
    """A file of a DeepSpeed checkpoint; DeepSpeed's own reader would run whatever a pickle holds.

    Raises:
        UserError: it holds more than tensors, plain values and the few classes that DeepSpeed writes.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # torch has no name of its own for what it refuses
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: not a checkpoint of this training ({reason})") from error


def check_processes(checkpoint: Path, processes: int) -> None:
    """DeepSpeed's checkpoints hold a piece of the optimizer for every process.

    Raises:
        UserError: this one was written by another number of processes.
    """
    found = len(list(checkpoint.rglob("*zero_pp_rank_*_optim_states.pt")))
    if found and found != processes:
        raise UserError(
            f"{checkpoint}: written by {found} processes under ZeRO, which goes on with as many, not with {processes}; "
            f"set devices x num_nodes to {found}, or train anew under another tag"
        )


def make_strategy(name: str, offload: bool = False) -> Strategy | str:
    """Strategy by name: ``single``, ``ddp``, ``zero1``, ``zero2``, ``zero3``.

    Args:
        offload: keep optimizer state (and ZeRO 3 parameters) in host memory.
    """
    if name == "single":
        return "auto"
    if name == "ddp":
        return DDPStrategy(find_unused_parameters=True)
    if name in ("zero1", "zero2", "zero3"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu" if not torch.cuda.is_available() else "cuda")
        strategy = ZeroStrategy(
            stage=int(name[-1]),
            offload_optimizer=offload,
            offload_parameters=offload and name == "zero3",
            logging_batch_size_per_gpu=1,  # batches are planned by cost; DeepSpeed only logs this number
        )
        assert isinstance(strategy.config, dict)
        strategy.config["zero_force_ds_cpu_optimizer"] = False
        return strategy
    raise UserError(f"strategy={name!r}: allowed are single, ddp, zero1, zero2, zero3")


def gathered_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU, also of parameters that ZeRO 3 has sharded (every rank calls it)."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if hasattr(tensor, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([tensor]):
                state[name] = tensor.detach().cpu().clone()
        else:
            state[name] = tensor.detach().cpu().clone()
    return state
