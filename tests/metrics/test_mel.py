import torch

from omniaudio.metrics.mel import mel_mae


def test_hand_value_and_padding_is_not_counted():
    x_BMT = torch.zeros(2, 3, 4)
    x_hat_BMT = torch.full((2, 3, 6), 100.0)
    x_hat_BMT[0, :, :4] = 1.0
    x_hat_BMT[1, :, :2] = -2.0
    total, count = mel_mae(x_hat_BMT, x_BMT, torch.tensor([4, 2]))
    assert (total, count) == (4 * 3 * 1.0 + 2 * 3 * 2.0, 18)


def test_padding_may_hold_anything():
    x_BMT = torch.zeros(1, 2, 3)
    x_hat_BMT = torch.tensor([[[1.0, 1.0, float("nan")], [1.0, 1.0, float("inf")]]])
    assert mel_mae(x_hat_BMT, x_BMT, torch.tensor([2])) == (4.0, 4)


def test_bins_without_sound_do_not_count():
    x_BMT = torch.zeros(2, 4, 5)
    x_hat_BMT = x_BMT.clone()
    x_hat_BMT[:, 2:] = 7.0
    x_hat_BMT[:, :2] = 0.5
    bins_BM = torch.tensor([[True, True, False, False], [True] * 4])
    assert mel_mae(x_hat_BMT, x_BMT, torch.tensor([5, 2]), bins_BM) == (
        5 * 2 * 0.5 + 2 * (2 * 0.5 + 2 * 7),
        5 * 2 + 2 * 4,
    )
