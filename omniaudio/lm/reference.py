"""A model as it was at the start of a training, beside what it has become."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from omniaudio.errors import UserError
from omniaudio.lm.lora import ADAPTER, are_idle, switched_off
from omniaudio.types import is_sharded


class Reference:
    """Calls a module as it was when this was made, while the module learns; there is no second module.

    What is frozen is used where it is. Adapters that change nothing yet are switched off, so with adapters alone
    nothing is copied. Of everything else that learns (without adapters: all of it) the first values are kept here,
    outside of the module: no checkpoint holds them, no optimizer sees them. A run that goes on makes its module of
    the same start weights before it reads its checkpoint, and with it this.

    Args:
        module: as it starts, with what learns marked by ``requires_grad``.

    Raises:
        UserError: ZeRO 3 has sharded the module.
    """

    def __init__(self, module: nn.Module) -> None:
        if is_sharded(module):
            raise UserError(
                "strategy=zero3: a training beside its start model needs whole weights; use zero2 or ddp"
            )
        self._module = module
        self._without_adapters = are_idle(module)
        self.kept = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and not (self._without_adapters and ADAPTER in name)
        }

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """What the start model gives for these arguments, in eval mode and without gradients."""
        module = self._module
        for name, kept in self.kept.items():  # the module may have moved to a device, or to another type
            self.kept[name] = kept.to(module.get_parameter(name))
        adapters = switched_off(module) if self._without_adapters else nullcontext()
        with torch.no_grad(), adapters, _in_eval_mode(module):
            return functional_call(module, self.kept, arguments, more)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    learning = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in learning:
            part.training = True
