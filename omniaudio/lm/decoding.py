"""How weights lie in memory while one reply is generated on a CPU."""

from __future__ import annotations

from torch import nn

from omniaudio.lm.audio_head import DepthLinear


def lay_out_for_decoding(model: nn.Module) -> None:
    """Hold the weights of linear maps column by column, in place; values and shapes stay.

    For one row, a product then adds up columns as fast as memory gives them, where rows give one dot product each:
    1.5 to 1.9 times as fast for a row or two, a fifth slower for 4 to 16, as fast for many (``tools/bench``, row 13).
    Not for a training: gradients and optimizers take weights as they lie.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | DepthLinear) and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()
