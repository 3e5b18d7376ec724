"""Bridge: lengths, stacking order, padding."""

import torch

from omniaudio.quantizers.bridge import ConvBridge


def test_lengths_drop_incomplete_groups() -> None:
    bridge = ConvBridge(width=4)
    z_BSD, length_B = bridge.down(torch.randn(5, 9, 4), torch.tensor([9, 8, 7, 4, 3]))
    assert z_BSD.shape == (5, 3, 16)
    assert length_B.tolist() == [2, 2, 1, 1, 0]
    assert bridge.up(z_BSD).shape == (5, 3, 4)


def test_without_the_gated_part_frames_are_stacked_in_order() -> None:
    bridge = ConvBridge(width=2, downsample=2)
    torch.nn.init.zeros_(bridge.down_proj.weight)
    hidden_BTD = torch.tensor([[[1.0, 2.0], [3.0, 5.0], [0.0, 4.0], [7.0, 6.0]]])
    z_BSD, _ = bridge.down(hidden_BTD, torch.tensor([4]))
    stacked = torch.tensor([[[1.0, 2.0, 3.0, 5.0], [0.0, 4.0, 7.0, 6.0]]])
    torch.testing.assert_close(z_BSD, torch.nn.functional.layer_norm(stacked, (4,)))


def test_a_frame_reaches_only_its_own_code() -> None:
    torch.manual_seed(0)
    bridge = ConvBridge(width=4)
    hidden_BTD = torch.randn(1, 12, 4, requires_grad=True)
    z_BSD, _ = bridge.down(hidden_BTD, torch.tensor([12]))
    z_BSD[0, 1, 0].backward()
    assert hidden_BTD.grad is not None
    assert (hidden_BTD.grad[0].abs().sum(-1) > 0).tolist() == [False] * 4 + [True] * 4 + [False] * 4
