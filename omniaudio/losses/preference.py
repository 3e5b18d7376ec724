"""Direct preference optimisation: of two replies to a prompt, the better one is to become the likelier one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def dpo_loss(ours_P2: Tensor, first_P2: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The loss of arXiv:2305.18290, equation 7.

    Args:
        ours_P2: log-probabilities of the chosen and the rejected reply of every pair, in nats.
        first_P2: the same under the reference model.
        beta: how dear it is to leave the reference.

    Returns:
        loss_P in nats, and margin_P: by how much the implicit reward of the chosen reply is larger.
    """
    reward_P2 = beta * (ours_P2 - first_P2)
    margin_P = reward_P2[:, 0] - reward_P2[:, 1]
    return -functional.logsigmoid(margin_P), margin_P
