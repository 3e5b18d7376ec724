"""How a training is spread: one device, DDP, or DeepSpeed ZeRO 1, 2, 3, by the same names on CPU and GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import nn

from omniaudio.errors import UserError
from omniaudio.training.masters import keep_shares, start_masters, whole_value
from omniaudio.training.zero_files import Reshard, load_without_code, num_processes


class ZeroPrecision(DeepSpeedPrecision):
    """Batches come as they are: Lightning's would round waveforms to bfloat16 before a mel is made of them."""

    def convert_input(self, data: Any) -> Any:
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO that also runs on CPU processes (gloo), divides accumulated gradients once, and rounds no master.

    Lightning's strategy refuses CPUs, though DeepSpeed runs there; with accumulation both Lightning and DeepSpeed
    divide the gradient by the number of batches; and in mixed precision DeepSpeed knows only weights in bfloat16.
    A step computes by autocast there, as under other strategies, so that what must be float32 can be.
    """

    @property
    def rounds(self) -> bool:
        """Whether the weights that are computed with are rounded ones."""
        return str(self.precision_plugin.precision).endswith("-mixed")

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

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """ZeRO 3 cuts in float32 what is built and loaded; ``_setup_model_and_optimizer`` rounds it."""
        self._init_config_if_needed()
        assert isinstance(self.config, dict)
        types = [name for name in ("bf16", "fp16") if self.rounds and name in self.config]
        rounding = {name: self.config.pop(name) for name in types}
        try:
            with super().model_sharded_context():
                yield
        finally:
            self.config.update(rounding)

    def _setup_model_and_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.rounds:
            return super()._setup_model_and_optimizer(model, *args, **kwargs)
        assert isinstance(self.config, dict)
        dtype = self.precision_plugin._desired_dtype
        self.config["torch_autocast"] = {"enabled": True, "dtype": str(dtype).removeprefix("torch.")}
        several = self.lightning_module.trainer.accumulate_grad_batches > 1
        if several and self.config["zero_optimization"]["stage"] > 1:
            # For stage 1 it is another optimizer; what stage 2 sums in host memory stays in the weights' type.
            self.config["data_types"] = {"grad_accum_dtype": "fp32"}
        keep_shares(model, dtype)
        found = super()._setup_model_and_optimizer(model, *args, **kwargs)
        start_masters(model)
        return found

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        engine, folder = self.deepspeed_engine, Path(checkpoint_path)
        engine.checkpoint_engine.load = load_without_code
        if num_processes(folder) in (0, self.world_size):
            return super().load_checkpoint(checkpoint_path, weights_only)
        optimizer = engine.optimizer
        groups = (
            optimizer.fp32_partitioned_groups_flat
            if self.zero_stage_3
            else optimizer.single_partition_of_fp32_groups
        )
        files = Reshard(folder, self.global_rank, self.world_size, [group.numel() for group in groups])
        engine.checkpoint_engine.load, engine._get_all_ckpt_names = files.load, files.model_files
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            del engine._get_all_ckpt_names  # a later checkpoint is this training's own

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)


def make_strategy(name: str, offload: bool = False) -> Strategy | str:
    """Strategy by name: ``single``, ``ddp``, ``zero1``, ``zero2``, ``zero3``.

    Args:
        offload: keep optimizer state (and ZeRO 3 parameters) in host memory.

    Raises:
        UserError: another name, or ``offload`` outside of ZeRO.
    """
    if offload and not name.startswith("zero"):
        raise UserError(
            f"offload=true: strategy={name} has nothing to move; allowed with zero1, zero2, zero3"
        )
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


def gradient_piece(parameter: Any) -> torch.Tensor | None:
    """What this rank holds of a gradient under ZeRO, between the backward pass and the step; None if it is nothing."""
    piece: torch.Tensor | None = None
    if hasattr(parameter, "ds_id") and parameter.requires_grad:
        from deepspeed.utils import safe_get_local_grad

        piece = safe_get_local_grad(parameter)
    elif getattr(parameter, "_hp_mapping", None) is not None:
        piece = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
    return piece


def gathered_state(module: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU, of parameters under ZeRO in float32 (every rank calls it): see ``masters``.

    Args:
        keep: whether this process needs it; one that does not holds no more than a tensor at a time.
    """
    values = ((name, whole_value(tensor)) for name, tensor in module.state_dict(keep_vars=True).items())
    return {name: value for name, value in values if keep}
