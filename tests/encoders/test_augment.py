"""Time masks."""

import torch

from omniaudio.encoders.augment import mask_time


def test_masks_are_spans_of_about_the_wanted_share() -> None:
    torch.manual_seed(0)
    length_B = torch.full((64,), 500)
    masked_BT = mask_time(torch.ones(64, 2, 500), length_B, share=0.05, span=10)[:, 0] == 0
    assert 0.04 < masked_BT.float().mean() < 0.055
    inner_BT = masked_BT[:, 10:-10]
    begins = (inner_BT[:, 1:] & ~inner_BT[:, :-1]).nonzero()
    assert len(begins) > 20
    for row, before in begins.tolist():
        first = before + 11
        assert masked_BT[row, first : first + 10].all(), "a mask is at least one span long"


def test_no_share_masks_nothing_and_all_bins_go_together() -> None:
    mel_BMT = torch.randn(2, 3, 50) + 9
    length_B = torch.tensor([50, 50])
    assert torch.equal(mask_time(mel_BMT, length_B, 0.0, 10), mel_BMT)
    masked_BMT = mask_time(mel_BMT, length_B, 0.9, 2) == 0
    assert masked_BMT.any()
    assert (masked_BMT.all(1) == masked_BMT.any(1)).all()
