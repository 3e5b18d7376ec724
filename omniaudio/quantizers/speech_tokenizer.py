"""Speech tokenizer: waveform to codes, and codes to log-mel.

Source: arXiv:2502.17239 section 3.1. The parts are given; this file joins them and checks that they fit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniaudio.draws import Draws
from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.errors import UserError
from omniaudio.fingerprint import Fingerprint, weights_digest
from omniaudio.frontend.mel import LogMel, MelSpec
from omniaudio.quantizers.base import Quantizer, check_num_books
from omniaudio.quantizers.bridge import ConvBridge
from omniaudio.quantizers.mel_decoder import FRAMES_PER_CODE, MelDecoder
from omniaudio.types import Codes, MelDecoderOutput, QuantizerOutput, valid_steps

MIN_SAMPLES = 400
"""Shortest input: one analysis window of the encoder's mel."""


class SpeechTokenizer(nn.Module):
    """Encoder, bridge, quantizer and mel decoder.

    Args:
        mel_spec: what the encoder reads.
        decoder_mel_spec: what the decoder writes.
        encoder, bridge, quantizer, decoder: parts of matching widths and rates.
    """

    def __init__(
        self,
        mel_spec: MelSpec,
        decoder_mel_spec: MelSpec,
        encoder: WhisperEncoder,
        bridge: ConvBridge,
        quantizer: Quantizer,
        decoder: MelDecoder,
    ) -> None:
        super().__init__()
        self.mel_spec = mel_spec
        self.decoder_mel_spec = decoder_mel_spec
        self.mel = LogMel(mel_spec)
        self.decoder_mel = LogMel(decoder_mel_spec)
        self.encoder = encoder
        self.bridge = bridge
        self.quantizer = quantizer
        self.decoder = decoder
        self._check_parts()

    @property
    def sample_rate_hz(self) -> int:
        return self.mel_spec.sample_rate_hz

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.quantizer.codebook_sizes

    @property
    def code_rate_hz(self) -> float:
        """Frames of codes a second."""
        return self.mel_spec.mel_rate_hz / 2 / self.bridge.downsample

    @property
    def chunk_samples(self) -> int:
        """Longest stretch that is encoded at once."""
        return 2 * self.encoder.max_frames * self.mel_spec.hop

    def fingerprint(self) -> Fingerprint:
        """Facts that every artefact made of these codes shares; the weights are those of the encode path."""
        state = {
            f"{part}.{name}": tensor
            for part in ("encoder", "bridge", "quantizer")
            for name, tensor in self.get_submodule(part).state_dict().items()
        }
        return {
            "codebook_sizes": list(self.codebook_sizes),
            "code_rate_hz": self.code_rate_hz,
            "encoder_mel": self.mel_spec.facts(),
            "decoder_mel": self.decoder_mel_spec.facts(),
            "tokenizer_weights": weights_digest(state),
        }

    def log_mel(self, wav_BN: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms of at most one chunk to the encoder's input (B, M, T) and its lengths."""
        mel_BMT, _ = self.mel(wav_BN, num_samples_B)
        return mel_BMT[..., : 2 * self.encoder.max_frames], self.mel_length(num_samples_B)

    def mel_length(self, num_samples_B: Tensor) -> Tensor:
        """Samples of at most one chunk to frames of the encoder's log-mel."""
        return self.mel_spec.num_frames(num_samples_B).clamp(max=2 * self.encoder.max_frames)

    def hidden_length(self, num_frames_B: Tensor) -> Tensor:
        """Frames of codes to the hidden states that ``decode`` makes of them."""
        return self.decoder.hidden_length(num_frames_B)

    def num_frames(self, mel_len_B: Tensor) -> Tensor:
        """Frames of the encoder's log-mel to frames of codes."""
        return self.encoder.output_length(mel_len_B) // self.bridge.downsample

    def forward(
        self,
        wav_BN: Tensor,
        num_samples_B: Tensor,
        bypass_share: float = 0.0,
        draws: Draws | None = None,
    ) -> tuple[QuantizerOutput, MelDecoderOutput]:
        """Waveforms of at most 30 s through the whole tokenizer, with gradients."""
        return self.reconstruct(*self.log_mel(wav_BN, num_samples_B), bypass_share=bypass_share, draws=draws)

    def reconstruct(
        self,
        mel_BMT: Tensor,
        mel_len_B: Tensor,
        *,
        bypass_share: float = 0.0,
        draws: Draws | None = None,
    ) -> tuple[QuantizerOutput, MelDecoderOutput]:
        """The encoder's log-mel through the whole tokenizer, with gradients.

        Args:
            mel_BMT: (B, M, T) from ``log_mel``.
            mel_len_B: valid frames.
            bypass_share, draws: see ResidualVQ.forward.
        """
        z_BSD, num_frames_B = self.bridge.down(*self.encoder(mel_BMT, mel_len_B))
        valid_BS = valid_steps(num_frames_B, z_BSD.shape[1])
        output = self.quantizer(z_BSD, valid_BS, bypass_share=bypass_share, draws=draws)
        return output, self.decoder(self.bridge.up(output.quantized_BSD), num_frames_B)

    @torch.no_grad()
    def encode(self, wav_BN: Tensor, num_samples_B: Tensor) -> Codes:
        """Waveforms of any length to codes.

        Longer ones are cut into chunks without overlap, coded one by one and joined; a last chunk of
        fewer than 400 samples gives no codes.

        Args:
            wav_BN: float in [-1, 1] at ``sample_rate_hz``.
            num_samples_B: valid samples.
        """
        if int(num_samples_B.min()) < MIN_SAMPLES:
            raise UserError(
                f"audio of {int(num_samples_B.min())} samples at {self.sample_rate_hz} Hz is too short "
                f"for a code; at least {MIN_SAMPLES} samples are needed"
            )
        total_B = torch.zeros_like(num_samples_B)
        pieces: list[tuple[Tensor, Tensor, Tensor]] = []
        for begin in range(0, int(num_samples_B.max()), self.chunk_samples):
            length_B = (num_samples_B - begin).clamp(max=self.chunk_samples)
            rows = (length_B >= MIN_SAMPLES).nonzero()[:, 0]
            if not len(rows):
                break
            chunk_RN = wav_BN[rows, begin : begin + int(length_B.max())]
            codes_RSK, num_frames_R = self._encode_chunk(chunk_RN, length_B[rows])
            pieces.append((rows, total_B[rows], codes_RSK))
            total_B[rows] += num_frames_R
        codes_BSK = torch.full(
            (len(wav_BN), int(total_B.max()), len(self.codebook_sizes)), -1, device=wav_BN.device
        )
        for rows, begin_R, codes_RSK in pieces:
            for row, first, codes_SK in zip(rows.tolist(), begin_R.tolist(), codes_RSK, strict=True):
                last = min(
                    first + len(codes_SK), int(total_B[row])
                )  # a shorter row's padding ends up past it
                codes_BSK[row, first:last] = codes_SK[: last - first]
        return Codes(codes_BSK=codes_BSK, num_frames_B=total_B)

    @torch.no_grad()
    def vectors(
        self, wav_BN: Tensor, num_samples_B: Tensor, num_books: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Waveforms of any length to what the decoder gets of them: (B, S, D) and lengths.

        Args:
            wav_BN, num_samples_B: as in ``encode``.
            num_books: leading books to read. A continuous tokenizer has none, and its vectors are the encoder's.
        """
        if self.codebook_sizes:
            codes = self.encode(wav_BN, num_samples_B)
            read_BSK = codes.codes_BSK[..., : check_num_books(num_books, len(self.codebook_sizes))]
            return self.quantizer.decode(read_BSK), codes.num_frames_B
        pieces, total_B = [], torch.zeros_like(num_samples_B)
        for begin in range(0, wav_BN.shape[1], self.chunk_samples):
            piece_BN = wav_BN[:, begin : begin + self.chunk_samples]
            piece_BN = functional.pad(piece_BN, (0, max(0, MIN_SAMPLES - piece_BN.shape[1])))
            length_B = (num_samples_B - begin).clamp(MIN_SAMPLES, self.chunk_samples)  # so few give no frame
            z_BSD, num_frames_B = self._before_quantizer(piece_BN, length_B)
            pieces.append(z_BSD[:, : self.chunk_frames])
            total_B = total_B + num_frames_B
        return torch.cat(pieces, 1)[:, : int(total_B.max())], total_B

    @torch.no_grad()
    def autoencode(
        self, wav_BN: Tensor, num_samples_B: Tensor, num_books: int | None = None
    ) -> MelDecoderOutput:
        """Waveforms of any length to the mels that are left of them. Arguments as in ``vectors``."""
        return self.decode_vectors(*self.vectors(wav_BN, num_samples_B, num_books))

    @property
    def chunk_frames(self) -> int:
        """Code frames of a whole chunk."""
        return self.encoder.max_frames // self.bridge.downsample

    @torch.no_grad()
    def decode(self, codes: Codes, num_books: int | None = None) -> MelDecoderOutput:
        """Codes of any length to mels.

        Args:
            codes: frames of all books; only the first ``num_books`` are read.
            num_books: None reads all.
        """
        return _joined(list(self.decode_chunks(codes, num_books)))

    @torch.no_grad()
    def decode_chunks(self, codes: Codes, num_books: int | None = None) -> Iterator[MelDecoderOutput]:
        """Codes to mels chunk by chunk: memory does not grow with their length.

        Yields:
            pieces that give ``decode``'s mels and states when they are laid one after the other; lengths are those
            within the piece.
        """
        codes_BSK = codes.codes_BSK[..., : check_num_books(num_books, len(self.codebook_sizes))]
        for begin in self._chunk_starts(codes_BSK.shape[1]):
            piece_BSK = codes_BSK[:, begin : begin + self.chunk_frames]
            yield self._decode_chunk(self.quantizer.decode(piece_BSK), codes.num_frames_B - begin)

    @torch.no_grad()
    def decode_vectors(self, quantized_BSD: Tensor, num_frames_B: Tensor) -> MelDecoderOutput:
        """Vectors of any length (see ``vectors``) to mels, chunk by chunk."""
        pieces = [
            self._decode_chunk(quantized_BSD[:, begin : begin + self.chunk_frames], num_frames_B - begin)
            for begin in self._chunk_starts(quantized_BSD.shape[1])
        ]
        return _joined(pieces)

    def _chunk_starts(self, num_frames: int) -> range:
        return range(0, max(1, num_frames), self.chunk_frames)

    def _decode_chunk(self, quantized_BSD: Tensor, num_left_B: Tensor) -> MelDecoderOutput:
        """One chunk of items that have ``num_left_B`` frames from its first on; who goes on after it fills it."""
        emb_BSD = self.bridge.up(quantized_BSD.to(self.bridge.proj_decoder.weight.dtype))
        if emb_BSD.shape[1] == 0:
            emb_BSD = functional.pad(emb_BSD, (0, 0, 0, 1))
        made = self.decoder(emb_BSD, num_left_B.clamp(0, self.chunk_frames))
        goes_on_B = num_left_B > self.chunk_frames
        if not goes_on_B.any():
            return made
        # The last frame of a chunk gives less than the others; it is held until the next chunk begins.
        num_mel = round(self.chunk_frames * self.decoder.mel_frames_per_code)
        num_hidden = self.chunk_frames * FRAMES_PER_CODE
        mel_len_B = torch.where(goes_on_B, num_mel, made.mel_len_B)
        hidden_len_B = torch.where(goes_on_B, num_hidden, made.hidden_len_B)
        hidden_BDT = made.hidden_BTD.transpose(1, 2)
        return MelDecoderOutput(
            coarse_BMT=_held(made.coarse_BMT, made.mel_len_B, mel_len_B, num_mel),
            refined_BMT=_held(made.refined_BMT, made.mel_len_B, mel_len_B, num_mel),
            mel_len_B=mel_len_B,
            hidden_BTD=_held(hidden_BDT, made.hidden_len_B, hidden_len_B, num_hidden).transpose(1, 2),
            hidden_len_B=hidden_len_B,
        )

    def _encode_chunk(self, wav_BN: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        z_BSD, num_frames_B = self._before_quantizer(wav_BN, num_samples_B)
        return self.quantizer.encode(z_BSD, valid_steps(num_frames_B, z_BSD.shape[1])), num_frames_B

    def _before_quantizer(self, wav_BN: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        mel_BMT, mel_len_B = self.log_mel(wav_BN, num_samples_B)
        dtype = self.encoder.conv1.weight.dtype
        return self.bridge.down(*self.encoder(mel_BMT.to(dtype), mel_len_B))

    def _check_parts(self) -> None:
        encoder_mel, decoder_mel, decoder = self.mel_spec, self.decoder_mel_spec, self.decoder
        ratio = decoder_mel.mel_rate_hz / self.code_rate_hz
        facts = [
            ("encoder.num_mels", self.encoder.num_mels, "mel.encoder.num_mels", encoder_mel.num_mels),
            ("bridge.width", self.bridge.width, "encoder.width", self.encoder.width),
            ("quantizer.dim", self.quantizer.dim, "bridge.downsample x bridge.width", self.bridge.dim),
            ("mel_decoder.width", decoder.width, "bridge.width", self.bridge.width),
            ("mel_decoder.num_mels", decoder.num_mels, "mel.decoder.num_mels", decoder_mel.num_mels),
            ("mel_decoder.mel_frames_per_code", decoder.mel_frames_per_code, "mel rate / code rate", ratio),
            (
                "mel.decoder.sample_rate_hz",
                decoder_mel.sample_rate_hz,
                "mel.encoder.sample_rate_hz",
                encoder_mel.sample_rate_hz,
            ),
        ]
        for name, value, owner, expected in facts:
            if value != expected:
                raise UserError(f"{name} is {value}, but {owner} is {expected}; they must be equal")


def _held(x_BCT: Tensor, length_B: Tensor, to_B: Tensor, num_frames: int) -> Tensor:
    """(B, C, num_frames): each item's last valid frame repeated up to the length ``to_B``, zeros from there."""
    index_BT = torch.arange(num_frames, device=x_BCT.device).expand(len(x_BCT), -1)
    index_BT = torch.minimum(index_BT, (length_B[:, None] - 1).clamp(min=0))
    y = x_BCT.gather(-1, index_BT[:, None].expand(-1, x_BCT.shape[1], -1))
    return y * valid_steps(to_B, num_frames)[:, None]


def _joined(pieces: list[MelDecoderOutput]) -> MelDecoderOutput:
    """Chunks one after the other; all but the last are full."""
    if len(pieces) == 1:
        return pieces[0]
    mel_len_B = torch.stack([piece.mel_len_B for piece in pieces]).sum(0)
    hidden_len_B = torch.stack([piece.hidden_len_B for piece in pieces]).sum(0)
    num_mel, num_hidden = int(mel_len_B.max()), int(hidden_len_B.max())
    return MelDecoderOutput(
        coarse_BMT=torch.cat([piece.coarse_BMT for piece in pieces], -1)[..., :num_mel],
        refined_BMT=torch.cat([piece.refined_BMT for piece in pieces], -1)[..., :num_mel],
        mel_len_B=mel_len_B,
        hidden_BTD=torch.cat([piece.hidden_BTD for piece in pieces], 1)[:, :num_hidden],
        hidden_len_B=hidden_len_B,
    )
