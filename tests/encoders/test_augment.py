"""Time masks."""

import torch

from omniaudio.draws import Draws
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


def test_an_item_has_its_masks_by_step_and_key_wherever_it_stands() -> None:
    keys = ["a", "b", "c", "d"]
    mel_BMT, length_B = torch.ones(4, 1, 300), torch.full((4,), 300)
    whole = mask_time(mel_BMT, length_B, 0.3, 5, Draws(7), keys)
    part = mask_time(mel_BMT[:2], length_B[:2], 0.3, 5, Draws(7), ["d", "b"])
    assert torch.equal(part, whole[[3, 1]]) and not torch.equal(part, whole[:2])
    assert not torch.equal(whole, mask_time(mel_BMT, length_B, 0.3, 5, Draws(8), keys)), "another step"
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 4
    padded = mask_time(torch.ones(1, 1, 400), torch.tensor([300]), 0.3, 5, Draws(7), ["c"])
    assert torch.equal(padded[:, :, :300], whole[2:3]), "whatever it is padded to"


def test_no_share_masks_nothing_and_all_bins_go_together() -> None:
    mel_BMT = torch.randn(2, 3, 50) + 9
    length_B = torch.tensor([50, 50])
    assert torch.equal(mask_time(mel_BMT, length_B, 0.0, 10), mel_BMT)
    masked_BMT = mask_time(mel_BMT, length_B, 0.9, 2) == 0
    assert masked_BMT.any()
    assert (masked_BMT.all(1) == masked_BMT.any(1)).all()
