"""Inverse STFT: inverts an STFT of the same frames; loud bins are held."""

import torch

from omniaudio.vocoders.spectral import MAX_MAGNITUDE, SameISTFT, polar


def test_inverts_the_transform() -> None:
    n_fft, hop, num_frames = 32, 8, 20
    wav = torch.randn(2, num_frames * hop)
    pad = (n_fft - hop) // 2
    frames = torch.nn.functional.pad(wav, (pad, pad)).unfold(1, n_fft, hop)
    spec = torch.fft.rfft(frames * torch.hann_window(n_fft), dim=-1).transpose(1, 2)
    assert spec.shape == (2, n_fft // 2 + 1, num_frames)
    torch.testing.assert_close(SameISTFT(n_fft, hop)(spec), wav, atol=1e-4, rtol=1e-4)


def test_centred_it_is_torchs_own() -> None:
    n_fft, hop = 16, 4
    wav, window = torch.randn(2, 400), torch.hann_window(n_fft)
    spec = torch.stft(wav, n_fft, hop, window=window, return_complex=True)
    spec = spec * torch.rand(spec.shape)  # not the transform of any signal
    found = SameISTFT(n_fft, hop, center=True)(spec)
    torch.testing.assert_close(found, torch.istft(spec, n_fft, hop, window=window), atol=1e-5, rtol=1e-5)


def test_polar() -> None:
    value = polar(torch.tensor([0.0, 50.0]), torch.tensor([torch.pi / 2, 0.0]))
    torch.testing.assert_close(value, torch.tensor([1j, MAX_MAGNITUDE + 0j]), atol=1e-6, rtol=1e-6)


def test_a_magnitude_that_overflows_has_a_gradient_of_zero() -> None:
    log_magnitude = torch.tensor([0.0, 1000.0], requires_grad=True)
    polar(log_magnitude, torch.zeros(2)).real.sum().backward()
    assert log_magnitude.grad is not None and log_magnitude.grad.tolist() == [1.0, 0.0]
