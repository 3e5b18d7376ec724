"""Cross-entropy over large vocabularies that never holds the logits of all positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniaudio.types import NO_LABEL

MAX_LOGITS = 2**26
"""Logits held at once, in elements."""

FEW_LOGITS = 2**24
"""So many need no chunks."""


class LogitHead(nn.Linear):
    """A linear map to logits, or to the loss of labels: one use of it, whichever is asked for.

    ZeRO 3 has the weights of a module whole while it is used, and every use is a collective. A loss that is made in
    here, chunk by chunk, gathers them once, however many rows this or another process has.

    Attributes:
        cap: logits go to ``cap * tanh(logits / cap)`` (Gemma 2, arXiv:2408.00118, section 2); None: they stay.
    """

    cap: float | None = None

    @classmethod
    def around(cls, linear: nn.Linear, cap: float | None = None) -> LogitHead:
        """One with the parameters of a linear map."""
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head.in_features, head.out_features = linear.in_features, linear.out_features
        head.weight, head.bias, head.cap = linear.weight, linear.bias, cap
        return head

    def forward(self, hidden: Tensor, label_N: Tensor | None = None, z_weight: float = 0.0) -> Tensor:
        """Hidden states (..., D) to logits (..., V); (N, D) with classes (N,) to cross-entropy (N,)."""
        if label_N is None:
            return self._logits(hidden)
        if len(label_N) * self.out_features <= FEW_LOGITS:
            return _cross_entropy(self._logits, hidden, label_N, z_weight)
        if self.bias is not None:
            return _again_in_backward(self._logits, hidden, label_N, self.out_features, z_weight)
        # Its gradient is taken at once, which none may want.
        weight = self.weight if torch.is_grad_enabled() else self.weight.detach()
        chunk = max(1, MAX_LOGITS // self.out_features)
        words = (hidden, weight, label_N, chunk, z_weight, self.cap)
        loss_N: Tensor = _LinearCrossEntropy.apply(*words)  # type: ignore[no-untyped-call]
        return loss_N

    def _logits(self, hidden: Tensor) -> Tensor:
        return capped(super().forward(hidden), self.cap)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits or scores of attention, of any shape, to at most ``cap``; None: as they are."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def chunked_cross_entropy(
    head: nn.Linear, hidden_LD: Tensor, label_L: Tensor, z_weight: float = 0.0
) -> Tensor:
    """Cross-entropy by position; logits are made only where there is a label, some rows at a time.

    Gradients of a LogitHead without bias are taken in the forward pass, chunk by chunk (arXiv:2410.10989), so that
    logits are made once. Any other head makes those of a chunk again in the backward pass.

    Args:
        head: hidden states (N, D) -> logits (N, V).
        hidden_LD: hidden states.
        label_L: class, or NO_LABEL.
        z_weight: of the squared logarithm of the softmax's denominator, which keeps logits from drifting away
            (z-loss, arXiv:2204.02311, section 5).

    Returns:
        (L,) float32 in nats, 0 where there is no label.
    """
    rows_N = (label_L != NO_LABEL).nonzero()[:, 0]
    hidden_ND, label_N = hidden_LD[rows_N], label_L[rows_N]
    if isinstance(head, LogitHead):
        loss_N = head(hidden_ND, label_N=label_N, z_weight=z_weight)
    else:
        loss_N = _again_in_backward(head, hidden_ND, label_N, head.out_features, z_weight)
    return torch.zeros(len(label_L), dtype=loss_N.dtype, device=loss_N.device).index_put((rows_N,), loss_N)


def _again_in_backward(
    head: Callable[[Tensor], Tensor], hidden_ND: Tensor, label_N: Tensor, num_classes: int, z_weight: float
) -> Tensor:
    chunks = _chunks(len(label_N), max(1, FEW_LOGITS // num_classes))
    if len(chunks) <= 1:
        return _cross_entropy(head, hidden_ND, label_N, z_weight)
    losses = [
        checkpoint(_cross_entropy, head, hidden_ND[here], label_N[here], z_weight, use_reentrant=False)
        for here in chunks
    ]
    return torch.cat(losses)


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy (N,) of ``hidden @ weight.T``, whose gradients are ready when the forward pass is over.

    That of the weight is a sum over rows, each times what the backward pass brings for it. It is ready if that is the
    same for all rows, as it is for a mean; otherwise, or when it is asked for twice, logits are made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        label_N: Tensor,
        chunk: int,
        z_weight: float,
        cap: float | None,
    ) -> Tensor:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_ND, weight_VD, label_N)
        ctx.chunk, ctx.dtype, ctx.z_weight, ctx.cap, ctx.grad_VD = chunk, dtype, z_weight, cap, None
        ctx.grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        if ctx.needs_input_grad[1]:
            ctx.grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        loss_N = torch.empty(len(label_N), dtype=torch.float32, device=hidden_ND.device)
        with torch.autocast(device, enabled=False):
            weight = weight_VD.to(dtype)
            for here in _chunks(len(label_N), chunk):
                hidden, label = hidden_ND[here].to(dtype), label_N[here]
                loss_N[here], error_nV = _loss_and_error(hidden, weight, label, z_weight, cap)
                if ctx.grad_ND is not None:
                    ctx.grad_ND[here] = error_nV @ weight
                if ctx.grad_VD is not None:
                    _add_product(ctx.grad_VD, error_nV, hidden)
                del error_nV  # before the next one is made
        return loss_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (grad_N,) = grads
        if grad_N is None:
            return None, None, None, None, None, None
        hidden_ND, weight_VD, label_N = ctx.saved_tensors
        grad_ND = grad_VD = None
        if ctx.grad_ND is not None:
            grad_ND = ctx.grad_ND * grad_N[:, None].to(ctx.grad_ND.dtype)
        if ctx.needs_input_grad[1]:
            grad_VD, ctx.grad_VD = ctx.grad_VD, None  # given away: it becomes the parameter's gradient
            even = len(grad_N) == 0 or bool((grad_N == grad_N[0]).all())
            if grad_VD is not None and even:
                grad_VD *= grad_N[0] if len(grad_N) else 1.0
            else:
                grad_VD = _weight_gradient(ctx, hidden_ND, weight_VD, label_N, grad_N)
            grad_VD = grad_VD.to(weight_VD.dtype)
        return grad_ND, grad_VD, None, None, None, None


def _loss_and_error(
    hidden_nD: Tensor, weight_VD: Tensor, label_n: Tensor, z_weight: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Loss by row, and its gradient by the logits before a cap in the type of the weight, in the memory of the logits.

    The slope of a cap is 1 - (capped / cap) ** 2, which takes as much memory again.
    """
    error_nV = capped(functional.linear(hidden_nD, weight_VD).float(), cap)
    slope_nV = None if cap is None else (error_nV / cap).square_().neg_().add_(1)
    most_n1 = error_nV.amax(dim=-1, keepdim=True)
    error_nV -= most_n1
    chosen_n1 = error_nV.gather(1, label_n[:, None])
    total_n1 = error_nV.exp_().sum(dim=-1, keepdim=True)
    log_total_n1 = total_n1.log()
    z_n1 = log_total_n1 + most_n1
    error_nV *= (1 + 2 * z_weight * z_n1) / total_n1
    error_nV.scatter_add_(1, label_n[:, None], error_nV.new_full((len(label_n), 1), -1.0))
    if slope_nV is not None:
        error_nV *= slope_nV
    return (log_total_n1 - chosen_n1 + z_weight * z_n1**2)[:, 0], error_nV.to(weight_VD.dtype)


def _weight_gradient(
    ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, label_N: Tensor, grad_N: Tensor
) -> Tensor:
    """Every row times its own factor: the logits are made again."""
    grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
    weight = weight_VD.to(ctx.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        for here in _chunks(len(label_N), ctx.chunk):
            hidden = hidden_ND[here].to(ctx.dtype)
            _, error_nV = _loss_and_error(hidden, weight, label_N[here], ctx.z_weight, ctx.cap)
            error_nV *= grad_N[here, None].to(ctx.dtype)
            _add_product(grad_VD, error_nV, hidden)
            del error_nV
    return grad_VD


def _add_product(sum_VD: Tensor, error_nV: Tensor, hidden_nD: Tensor) -> None:
    if error_nV.dtype == sum_VD.dtype:
        sum_VD.addmm_(error_nV.T, hidden_nD)
    else:
        sum_VD += error_nV.T @ hidden_nD


def _chunks(num_rows: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, num_rows)) for start in range(0, num_rows, chunk)]


def _cross_entropy(
    head: Callable[[Tensor], Tensor], hidden_ND: Tensor, label_N: Tensor, z_weight: float
) -> Tensor:
    logits_NV = head(hidden_ND).float()
    loss_N = functional.cross_entropy(logits_NV, label_N, reduction="none")
    return loss_N + z_weight * logits_NV.logsumexp(dim=-1) ** 2 if z_weight else loss_N
