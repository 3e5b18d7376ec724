"""The float32 values behind weights that ZeRO computes with in bfloat16.

What learns has them in DeepSpeed's optimizer, its masters. DeepSpeed makes these of weights that it has rounded, and
of what is frozen it makes none. So before it rounds, each process keeps its share of every weight on the CPU, cut as
ZeRO 3 cuts: the masters start from it, and a frozen weight has it to the end. A run that goes on loads or draws what
is frozen as at its first start; what learns comes out of its checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omniaudio.training.zero_files import stretch


def keep_shares(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the float32 values of all parameters; what ZeRO 3 has cut becomes ``dtype``, the rest the engine casts."""
    for parameter in module.parameters():
        if parameter.dtype != torch.float32:
            continue
        if hasattr(parameter, "ds_tensor"):
            share = parameter.ds_tensor.detach().reshape(-1)
            parameter.ds_tensor.data = parameter.ds_tensor.data.to(dtype)
            parameter.data = parameter.data.to(dtype)
        else:
            ranks = torch.distributed.get_world_size()
            length = -(-parameter.numel() // ranks)
            share = stretch([parameter.detach().reshape(-1)], torch.distributed.get_rank() * length, length)
        parameter.exact_share = share.cpu()  # type: ignore[attr-defined]


def start_masters(module: nn.Module) -> None:
    """Give the masters, which the engine has made by now, the values that were kept; those of what is frozen stay."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    for parameter in module.parameters():
        if not parameter.requires_grad or not hasattr(parameter, "exact_share"):
            continue
        if hasattr(parameter, "ds_id"):
            safe_set_local_fp32_param(parameter, parameter.exact_share)
        else:
            safe_set_full_fp32_param(parameter, _joined(parameter.exact_share, parameter))
        del parameter.exact_share


def whole_value(tensor: Tensor) -> Tensor:
    """A whole parameter or buffer as it is to be written, on the CPU; every process calls it.

    Of what learns under ZeRO: the float32 master. Of what is frozen: the value before it was rounded, as long as the
    weight is that value, rounded; one that has moved is given as it is.
    """
    if hasattr(tensor, "_z3_optimizer") and tensor.requires_grad:
        from deepspeed.utils import safe_get_local_fp32_param

        return _joined(safe_get_local_fp32_param(tensor), tensor).cpu()
    if hasattr(tensor, "_hp_mapping"):
        return _of_stretches(tensor).cpu()
    found = _joined(tensor.ds_tensor, tensor) if hasattr(tensor, "ds_tensor") else tensor.detach()
    if hasattr(tensor, "exact_share"):
        exact = _joined(tensor.exact_share, tensor)
        found = exact if torch.equal(exact.to(found.dtype), found.to(exact.device)) else found
    return found.to("cpu", copy=True)


def size_of(parameter: Tensor) -> int:
    """Numbers of a whole parameter."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _joined(share: Tensor, parameter: Tensor) -> Tensor:
    """The whole of equal shares, the last ones padded; on the device of the collectives."""
    share = share.detach().to(_device()).reshape(-1)
    shares = [torch.empty_like(share) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shares, share)
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return torch.cat(shares)[: size_of(parameter)].reshape(shape)


def _of_stretches(parameter: Tensor) -> Tensor:
    """The master of a parameter, of which ZeRO 1 and 2 give each process a stretch or nothing."""
    flat = torch.zeros(parameter.numel(), device=_device())
    held = parameter._hp_mapping  # type: ignore[attr-defined]
    if held is not None:
        at = held.lp_fragment_address
        flat[at.start : at.start + at.numel] = held.hp_fragment.detach().to(flat)
    torch.distributed.all_reduce(flat)
    return flat.reshape(parameter.shape)


def _device() -> torch.device:
    """Where collectives run, also when a training has ended and its module is on the CPU again."""
    cuda = torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
