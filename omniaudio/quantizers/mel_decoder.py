"""Tokenizer's decoder: quantized frames to 50 Hz hidden states, a coarse log-mel and a refined one.

Source: arXiv:2502.17239 section 3.1 and its released model. C stands for the channels of a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.encoders.transformer import TransformerLayer, run_layers, sinusoids
from omniaudio.init import start_silent, whole
from omniaudio.types import MelDecoderOutput, valid_steps

FRAMES_PER_CODE = 4
"""Hidden frames of a code: stride of the first deconvolution."""

FRAMES_PER_HIDDEN = 2
"""Frames of a hidden state before resampling to the mel rate: stride of the second deconvolution."""


class MaskedGroupNorm(nn.Module):
    """GroupNorm with one group whose statistics see an item's valid frames only."""

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x_BCT: Tensor, valid_B1T: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T), zero at padding."""
        with torch.autocast(x_BCT.device.type, enabled=False):
            x = x_BCT.float() * valid_B1T
            count_B11 = valid_B1T.sum(-1, keepdim=True).clamp(min=1) * x.shape[1]
            mean_B11 = x.sum((1, 2), keepdim=True) / count_B11
            centered = (x - mean_B11) * valid_B1T
            scale_B11 = torch.rsqrt(centered.square().sum((1, 2), keepdim=True) / count_B11 + self.eps)
            y = torch.addcmul(self.bias.float()[:, None], centered * scale_B11, self.weight.float()[:, None])
            return (y * valid_B1T).to(x_BCT.dtype)

    def go_on(self, x_BCT: Tensor, valid_B1T: Tensor, sums_B3: Tensor) -> tuple[Tensor, Tensor]:
        """The next frames of a stream, normalised by the statistics of all frames so far.

        Args:
            sums_B3: float64 sum, sum of squares and count of all values before; zeros at the beginning.

        Returns:
            normalised (B, C, T), sums_B3 with these frames.
        """
        with torch.autocast(x_BCT.device.type, enabled=False):
            x = x_BCT.float() * valid_B1T
            count_BT = valid_B1T[:, 0].float() * x.shape[1]
            frames_B3T = torch.stack([x.sum(1), x.square().sum(1), count_BT], 1).double()
            sums_B3T = sums_B3[..., None] + frames_B3T.cumsum(-1)
            mean_BT, square_BT = (sums_B3T[:, i] / sums_B3T[:, 2].clamp(min=1) for i in (0, 1))
            scale_BT = torch.rsqrt((square_BT - mean_BT.square()).clamp(min=0) + self.eps).float()
            y = (x - mean_BT.float()[:, None]) * scale_BT[:, None]
            y = torch.addcmul(self.bias.float()[:, None], y, self.weight.float()[:, None])
            return (y * valid_B1T).to(x_BCT.dtype), sums_B3T[..., -1]


class CumulativeNorm(MaskedGroupNorm):
    """The same with statistics of an item's frames so far: no frame waits for a later one (arXiv:1809.07454, II-E)."""

    def forward(self, x_BCT: Tensor, valid_B1T: Tensor) -> Tensor:
        """As MaskedGroupNorm."""
        return self.go_on(x_BCT, valid_B1T, x_BCT.new_zeros(len(x_BCT), 3, dtype=torch.float64))[0]


class NormedDeconv(nn.Module):
    """ConvTranspose1d and a norm; an item of T frames gives (T - 1) x stride + kernel_size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        norm: type[MaskedGroupNorm] = MaskedGroupNorm,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride)
        self.norm = norm(out_channels)

    def forward(self, x_BCT: Tensor, length_B: Tensor) -> Tensor:
        """(B, C, T), zero at padding, to (B, C', (T - 1) x stride + kernel_size), zero at padding."""
        y = self.conv(x_BCT)
        out_len_B = ((length_B - 1) * self.stride + self.kernel_size) * (length_B > 0)
        return self.norm(y, valid_steps(out_len_B, y.shape[-1])[:, None])


class RefineLayer(nn.Module):
    """Conv1d, MaskedGroupNorm, Mish."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = MaskedGroupNorm(out_channels)

    def forward(self, x_BCT: Tensor, valid_B1T: Tensor) -> Tensor:
        return functional.mish(self.norm(self.conv(x_BCT), valid_B1T))


class RefineNet(nn.Module):
    """Residual convolutions over the coarse mel."""

    def __init__(self, num_mels: int, width: int, num_layers: int) -> None:
        super().__init__()
        inputs = [num_mels] + [width] * (num_layers - 1)
        self.layers = nn.ModuleList(RefineLayer(channels, width) for channels in inputs)
        self.out = nn.Conv1d(width, num_mels, kernel_size=1)
        start_silent(self.out)

    def forward(self, mel_BMT: Tensor, valid_B1T: Tensor) -> Tensor:
        x = mel_BMT
        for layer in self.layers:
            x = layer(x, valid_B1T)
        return (mel_BMT + self.out(x)) * valid_B1T


class MelDecoder(nn.Module):
    """Deconvolution x4, causal transformer, deconvolution x2, resampling to the mel rate, refine net.

    Args:
        width: model width D.
        num_mels: bins of the output.
        num_layers, num_heads, ffn_width: of the transformer.
        refine_width, refine_layers: of the refine net.
        mel_frames_per_code: mel rate over code rate.
        max_frames: longest sequence of hidden states.
        mel_mean, mel_std: level and spread of a typical target log-mel: where the coarse mel's scale and
            bias start, so that training need not travel there first.
        recompute: see run_layers.
    """

    hidden_norm: type[MaskedGroupNorm] = MaskedGroupNorm
    """Of the frames that become hidden states."""

    def __init__(
        self,
        width: int,
        num_mels: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        refine_width: int = 256,
        refine_layers: int = 4,
        mel_frames_per_code: float = 5.0,
        max_frames: int = 3000,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.num_mels = num_mels
        self.mel_frames_per_code = mel_frames_per_code
        self.max_frames = max_frames
        self.recompute = recompute
        self.positional_embedding: Tensor
        self.register_buffer("positional_embedding", sinusoids(max_frames, width))
        self.dconv1 = NormedDeconv(width, width, kernel_size=3, stride=FRAMES_PER_CODE, norm=self.hidden_norm)
        self.layers = nn.ModuleList(
            TransformerLayer(width, num_heads, ffn_width, causal=True) for _ in range(num_layers)
        )
        self.layer_norm = nn.LayerNorm(width)
        self.dconv2 = NormedDeconv(width, num_mels, kernel_size=3, stride=FRAMES_PER_HIDDEN)
        with whole(self.dconv2.norm.parameters()):
            nn.init.constant_(self.dconv2.norm.bias, mel_mean)
            nn.init.constant_(self.dconv2.norm.weight, mel_std)
        self.refine = RefineNet(num_mels, refine_width, refine_layers)

    @property
    def max_codes(self) -> int:
        """Longest input, in code frames."""
        return (self.max_frames + 1) // FRAMES_PER_CODE

    def hidden_length(self, num_frames_B: Tensor) -> Tensor:
        """Code frames to hidden frames: the last code gives one frame less than the others."""
        return (FRAMES_PER_CODE * num_frames_B - 1).clamp(min=0)

    def mel_length(self, num_frames_B: Tensor) -> Tensor:
        """Code frames to mel frames."""
        return self._mel_frames(self.hidden_length(num_frames_B))

    def _mel_frames(self, hidden_len_B: Tensor) -> Tensor:
        return (hidden_len_B * (self.mel_frames_per_code / FRAMES_PER_CODE)).floor().long()

    def forward(self, emb_BSD: Tensor, num_frames_B: Tensor) -> MelDecoderOutput:
        """Decode; an item decodes alike alone and in any batch.

        Args:
            emb_BSD: (B, S, D) projected quantized vectors, 1 <= S <= max_codes.
            num_frames_B: valid code frames.

        Returns:
            MelDecoderOutput, all zero beyond the valid frames.
        """
        if emb_BSD.shape[1] > self.max_codes:
            raise ValueError(f"{emb_BSD.shape[1]} code frames; the decoder takes {self.max_codes} at most")
        emb_BSD = emb_BSD * valid_steps(num_frames_B, emb_BSD.shape[1])[..., None]
        x_BTD = self.dconv1(emb_BSD.transpose(1, 2), num_frames_B).transpose(1, 2)
        x_BTD = x_BTD + self.positional_embedding[: x_BTD.shape[1]].to(x_BTD.dtype)
        x_BTD = run_layers(self.layers, x_BTD, recompute=self.recompute)
        hidden_len_B = self.hidden_length(num_frames_B)
        hidden_BTD = self.layer_norm(x_BTD) * valid_steps(hidden_len_B, x_BTD.shape[1])[..., None]

        return self.mels(hidden_BTD, hidden_len_B)

    def mels(self, hidden_BTD: Tensor, hidden_len_B: Tensor) -> MelDecoderOutput:
        """Hidden states (B, T, D), zero beyond their lengths, to the mels of both stages."""
        fine_BMT = self.dconv2(hidden_BTD.transpose(1, 2), hidden_len_B)
        mel_len_B = self._mel_frames(hidden_len_B)
        coarse_BMT = _resample(fine_BMT, FRAMES_PER_HIDDEN * hidden_len_B, mel_len_B)
        refined_BMT = self.refine(coarse_BMT, valid_steps(mel_len_B, coarse_BMT.shape[-1])[:, None])
        return MelDecoderOutput(
            coarse_BMT=coarse_BMT,
            refined_BMT=refined_BMT,
            mel_len_B=mel_len_B,
            hidden_BTD=hidden_BTD,
            hidden_len_B=hidden_len_B,
        )


class CausalMelDecoder(MelDecoder):
    """One whose hidden states know no later codes, so that they can be had one by one: see DecoderStream.

    Weights have the shapes of MelDecoder's, but must be trained so. The coarse and refined mels still see the whole.
    """

    hidden_norm = CumulativeNorm


def _resample(x_BCT: Tensor, in_len_B: Tensor, out_len_B: Tensor) -> Tensor:
    """Nearest frame, each item by its own ratio of lengths (as torch's nearest interpolation of it alone)."""
    num_out = max(1, int(out_len_B.max()))
    ratio_B = in_len_B.float() / out_len_B.clamp(min=1).float()
    index_BT = (torch.arange(num_out, device=x_BCT.device) * ratio_B[:, None]).floor().long()
    index_BT = torch.minimum(index_BT, (in_len_B[:, None] - 1).clamp(min=0))
    y = x_BCT.gather(-1, index_BT[:, None].expand(-1, x_BCT.shape[1], -1))
    return y * valid_steps(out_len_B, num_out)[:, None]
