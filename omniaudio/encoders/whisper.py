"""Speech encoder of Whisper's shape, bidirectional, at the true length of every item.

Source: arXiv:2212.04356 section 2.2; used at variable length as in arXiv:2502.17239 section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.encoders.transformer import TransformerLayer, run_layers, sinusoids
from omniaudio.errors import UserError
from omniaudio.init import copy_whole, shape_of, start_loud, start_silent, unsharded
from omniaudio.types import valid_steps


class WhisperEncoder(nn.Module):
    """Log-mel to hidden states at half its rate (100 Hz to 50 Hz).

    An item gives the same states alone and in any batch: the convolutions see zeros beyond its last frame
    and attention never sees padding.

    Args:
        num_mels: bins of the input.
        width: model width.
        num_layers: transformer layers.
        num_heads: attention heads.
        ffn_width: feed-forward width.
        max_frames: longest output, in frames; the input may have twice as many.
        recompute: see run_layers.
        pretrained: name on the hub, or local folder, of a Whisper checkpoint to start from, or None.
        out_width: width D of what comes out, by a learned projection; None is ``width``, without one. For a small
            tokenizer around a large encoder. Not in the paper.
        mel_skip: add a learned projection of the log-mel itself to the states that leave the layers, and let those
            begin silent where ``out_width`` projects them. A recogniser's layers forget how speech sounds, and a
            short training does not teach it them again (LOG.md has numbers). Not in the paper.
    """

    def __init__(
        self,
        num_mels: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        max_frames: int = 1500,
        recompute: bool = False,
        pretrained: str | None = None,
        out_width: int | None = None,
        mel_skip: bool = False,
    ) -> None:
        super().__init__()
        self.num_mels = num_mels
        self.width = out_width or width
        self.max_frames = max_frames
        self.recompute = recompute
        self.positional_embedding: Tensor
        self.register_buffer("positional_embedding", sinusoids(max_frames, width))
        self.conv1 = nn.Conv1d(num_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.layers = nn.ModuleList(TransformerLayer(width, num_heads, ffn_width) for _ in range(num_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, self.width, bias=False) if self.width != width else None
        self.skip: nn.Conv1d | None = None
        start_loud(self.conv1, self.conv2)
        if mel_skip:
            self.skip = nn.Conv1d(num_mels, self.width, kernel_size=3, stride=2, padding=1, bias=False)
            start_loud(self.skip)
            if self.out is not None:
                start_silent(self.out)
        if pretrained is not None and not self.conv1.weight.is_meta:
            load_pretrained(self, pretrained)

    @staticmethod
    def output_length(mel_len_B: Tensor) -> Tensor:
        """Mel frames to encoder frames."""
        return (mel_len_B - 1) // 2 + 1

    def forward(self, mel_BMT: Tensor, mel_len_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            mel_BMT: (B, num_mels, T) log-mel at 100 Hz; T at most 2 x max_frames.
            mel_len_B: valid mel frames, at least 1 each.

        Returns:
            hidden (B, (T - 1) // 2 + 1, D), zero beyond the valid frames, and its lengths.
        """
        num_frames = mel_BMT.shape[-1]
        if num_frames > 2 * self.max_frames:
            raise ValueError(f"{num_frames} mel frames; the encoder takes {2 * self.max_frames} at most")
        valid_B1T = valid_steps(mel_len_B, num_frames)[:, None]
        x = functional.gelu(self.conv1(mel_BMT * valid_B1T)) * valid_B1T
        x_BTD = functional.gelu(self.conv2(x)).transpose(1, 2)
        x_BTD = x_BTD + self.positional_embedding[: x_BTD.shape[1]].to(x_BTD.dtype)

        hidden_len_B = self.output_length(mel_len_B)
        valid_BT = valid_steps(hidden_len_B, x_BTD.shape[1])
        hidden_BTD = run_layers(self.layers, x_BTD, valid_BT[:, None, None], recompute=self.recompute)
        hidden_BTD = self.layer_norm(hidden_BTD)
        if self.out is not None:
            hidden_BTD = self.out(hidden_BTD)
        if self.skip is not None:
            hidden_BTD = hidden_BTD + self.skip(mel_BMT * valid_B1T).transpose(1, 2)
        return hidden_BTD * valid_BT[..., None], hidden_len_B


def load_pretrained(encoder: WhisperEncoder, name: str) -> None:
    """Copy the encoder half of a Whisper checkpoint into ``encoder``; every tensor must fit.

    Args:
        name: name on the hub, or local folder, as transformers reads it.
    """
    import transformers

    try:
        with unsharded():
            theirs = transformers.WhisperModel.from_pretrained(name, dtype=torch.float32).encoder.state_dict()
    except (OSError, ValueError) as error:
        raise UserError(
            f"encoder.pretrained: {name!r} is no Whisper checkpoint ({str(error).splitlines()[0]}); give a "
            "folder with config.json and model.safetensors, a name on the hub, or null"
        ) from error
    # No Whisper has the others.
    ours = {
        k: v for k, v in encoder.state_dict(keep_vars=True).items() if not k.startswith(("out.", "skip."))
    }
    state = {_our_name(key): value for key, value in theirs.items()}
    problems = [f"{key} is missing" for key in ours if key not in state]
    problems += [f"{key} is not used" for key in state if key not in ours]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} there, {tuple(shape_of(tensor))} here"
        for key, tensor in ours.items()
        if key in state and state[key].shape != shape_of(tensor)
    ]
    if problems:
        raise UserError(
            f"encoder.pretrained: {name!r} does not fit the encoder config: {'; '.join(problems[:8])}"
            + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        )
    copy_whole(ours, state)


def _our_name(key: str) -> str:
    return "positional_embedding" if key == "embed_positions.weight" else key
