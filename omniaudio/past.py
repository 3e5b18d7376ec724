"""What layers remember between the chunks of a stream: keys and values of attention, last inputs of convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Past:
    """Memory of every layer that is run with it; one for each pass over a stream. The layers themselves keep nothing.

    Args:
        look_back: steps whose keys and values are kept; None keeps all.
    """

    def __init__(self, look_back: int | None = None) -> None:
        self.look_back = look_back
        self._held: dict[nn.Module, Tensor] = {}

    def before(self, layer: nn.Module, x_BDT: Tensor, num_steps: int) -> Tensor:
        """(B, D, T) with the ``num_steps`` inputs that came before it in front; zeros before the first."""
        held = self._held.get(layer)
        x_BDT = F.pad(x_BDT, (num_steps, 0)) if held is None else torch.cat([held, x_BDT], dim=-1)
        self._held[layer] = x_BDT[..., x_BDT.shape[-1] - num_steps :]
        return x_BDT

    def keys_values(self, layer: nn.Module, key_BTD: Tensor, value_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, look_back or fewer + T, D): of the past, then these."""
        pair = torch.stack([key_BTD, value_BTD])
        if layer in self._held:
            pair = torch.cat([self._held[layer], pair], dim=2)
        begin = 0 if self.look_back is None else max(0, pair.shape[2] - self.look_back)
        self._held[layer] = pair[:, :, begin:]
        return pair[0], pair[1]

    @property
    def num_values(self) -> int:
        """Numbers that are remembered."""
        return sum(held.numel() for held in self._held.values())


def band(num_queries: int, num_keys: int, look_back: int | None, device: torch.device) -> Tensor:
    """(queries, keys), True where a query sees a key: itself and, of those before, the last ``look_back`` (None: all).

    The queries are the last of the keys' steps.
    """
    query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    distance = query - torch.arange(num_keys, device=device)
    return (distance >= 0) & (distance <= (num_keys if look_back is None else look_back))
