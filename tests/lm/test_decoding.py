from __future__ import annotations

import copy

import torch

from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.decoding import lay_out_for_decoding


def test_only_the_place_of_the_weights_changes() -> None:
    torch.manual_seed(0)
    head = AudioHead(32, [9, 9, 9], num_layers=2, head_dim=16).eval()
    laid = copy.deepcopy(head)
    lay_out_for_decoding(laid)
    hidden_FD, prefix_FKD = torch.randn(2, 32), torch.randn(2, 2, 32)
    for mine, other in zip(
        laid.logits(hidden_FD, prefix_FKD), head.logits(hidden_FD, prefix_FKD), strict=True
    ):
        torch.testing.assert_close(mine, other)
    for name, weight in laid.named_parameters():
        assert torch.equal(weight, head.get_parameter(name))
        assert weight.stride(0) == 1 or weight.dim() == 1, f"{name} is still held row by row"
