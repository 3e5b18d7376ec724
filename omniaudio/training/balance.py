"""How hard every loss pulls on some parameters, and weights that make them pull as their weights say.

Source: the loss balancer of arXiv:2210.13438, section 3.4, on parameters instead of the model's output.
arXiv:2502.17239, section 3.1, chooses the size of its text LLM by matched gradient norms.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from omniaudio.errors import UserError
from omniaudio.ranks import num_ranks
from omniaudio.training.freeze import part_of
from omniaudio.training.strategies import gradient_piece
from omniaudio.types import is_sharded

MIN_NORM = 1e-12


class GradientBalance:
    """Measures the gradient norm of every weighted loss every few steps; optionally balances.

    Balanced, loss i with weight w_i pulls with the share w_i / sum(w) of the pull that all of them had together,
    by norms averaged over the measurements. The measurement costs one backward pass a loss.

    Args:
        parameters: glob patterns over parameter names on which norms are taken.
        every_steps: optimizer steps from one measurement to the next.
        equalise: change the weights; False only measures.
        decay: of the moving average of the norms.
    """

    def __init__(
        self,
        parameters: Sequence[str],
        every_steps: int = 50,
        equalise: bool = False,
        decay: float = 0.9,
    ) -> None:
        if every_steps < 1 or not 0 <= decay < 1:
            raise UserError(
                f"task.balance: every_steps must be at least 1 and decay in [0, 1), not {every_steps}, {decay}"
            )
        self.patterns = tuple(parameters)
        self.every_steps, self.equalise, self.decay = every_steps, equalise, decay
        self.norms: dict[str, float] = {}

    def measure(
        self, module: nn.Module, losses: Mapping[str, Tensor], weights: Mapping[str, float]
    ) -> dict[str, float]:
        """Norm of the gradient of every loss times its weight, over all ranks; averages are updated.

        Args:
            module: names its parameters as the patterns do.
            losses: global means, scaled by the number of ranks (see Task.reduced).
            weights: those of weight 0 are left out.

        Raises:
            UserError: the patterns match nothing that learns, or ZeRO 3 holds pieces of the parameters.
        """
        parameters = self._parameters(module)
        found = {}
        for name, loss in losses.items():
            if not weights[name] or not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norm = _global_norm(gradients, parameters)
            if math.isfinite(
                norm
            ):  # the step of a bad batch is skipped; the averages must not have it either
                self.norms[name] = self.decay * self.norms.get(name, norm) + (1 - self.decay) * norm
            found[name] = weights[name] * norm
        return found

    def weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The weights to train with: those given, or balanced ones once norms are known."""
        known = {n: w for n, w in weights.items() if w and self.norms.get(n, 0.0) > MIN_NORM}
        if not self.equalise or not known:
            return dict(weights)
        pull, total = sum(w * self.norms[n] for n, w in known.items()), sum(known.values())
        balanced = {n: pull * (w / total) / self.norms[n] for n, w in known.items()}
        return {**weights, **balanced}

    def _parameters(self, module: nn.Module) -> list[nn.Parameter]:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        names = [name for pattern in self.patterns for name in fnmatch.filter(trained, pattern)]
        if not names:
            raise UserError(f"task.balance.parameters: {list(self.patterns)} match no trained parameter")
        parameters = [trained[name] for name in dict.fromkeys(names)]
        if is_sharded(module):
            raise UserError("task.balance: gradient norms need whole parameters; use zero1, zero2 or ddp")
        return parameters


def norms_of_parts(module: nn.Module, sharded: bool = False) -> dict[str, Tensor]:
    """Norm of the gradients of each part (see ``part_of``): ``grad_norm/part/lm.backbone``, ...

    Args:
        sharded: under ZeRO, where every rank holds pieces of them: all ranks ask.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        gradient = gradient_piece(parameter) if sharded else parameter.grad
        if parameter.requires_grad and (sharded or gradient is not None):  # the same parts on all ranks
            pieces = parts.setdefault(f"grad_norm/part/{part_of(name)}", [])
            pieces.extend([] if gradient is None else [gradient])
    norms = [nn.utils.get_total_norm(pieces) for pieces in parts.values()]
    if sharded and norms:
        device = next(module.parameters()).device
        squares = torch.stack([norm.to(device) for norm in norms]).float().square()
        distributed.all_reduce(squares)
        norms = list(squares.sqrt())
    return dict(zip(parts, norms, strict=True))


def _global_norm(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> float:
    """Norm of the mean of all ranks' gradients."""
    square = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        whole = torch.zeros_like(parameter) if gradient is None else gradient.float()
        if num_ranks() > 1:
            distributed.all_reduce(whole)
            whole = whole / num_ranks()
        square += whole.square().sum(dtype=torch.float64)
    return float(square.sqrt())
