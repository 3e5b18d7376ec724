"""Hidden states while codes still come: the mel decoder, piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor

from omniaudio.past import Past
from omniaudio.quantizers.base import check_num_books
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.types import device_of


class DecoderStream:
    """Codes in pieces of any size in, hidden states out.

    Of a CausalMelDecoder they are those of ``SpeechTokenizer.decode``. Any other's norm knows the whole stretch there,
    and here the codes so far: the states differ at the beginning of a stretch, and less and less. S codes give
    4 S - 1 states in all; each is out as soon as its code is in. Memory is bounded: as in ``decode``, the decoder
    begins anew after the codes that it takes at most (30 s).

    Args:
        tokenizer: in eval mode.
        num_books: leading books to read; None reads all.
    """

    def __init__(self, tokenizer: SpeechTokenizer, num_books: int | None = None) -> None:
        self.tokenizer, self.decoder = tokenizer, tokenizer.decoder
        self.num_books = check_num_books(num_books, len(tokenizer.codebook_sizes))
        self._last_TD: Tensor | None = None
        self._begin()

    def _begin(self) -> None:
        self._num_codes, self._past = 0, Past()
        self._sums_B3 = torch.zeros(1, 3, dtype=torch.float64, device=device_of(self.tokenizer))

    @torch.no_grad()
    def push(self, codes_SK: Tensor) -> Tensor:
        """The next codes (S, K) to the next states (T, D)."""
        pieces = [torch.zeros(0, self.decoder.width, device=device_of(self.tokenizer))]
        while len(codes_SK):
            if self._num_codes == self.tokenizer.chunk_frames:  # the last state is held, as in ``decode``
                assert self._last_TD is not None
                pieces.append(self._last_TD)
                self._begin()
            take = self.tokenizer.chunk_frames - self._num_codes
            pieces.append(self._states(codes_SK[:take]))
            self._last_TD = pieces[-1][-1:]
            codes_SK = codes_SK[take:]
        return torch.cat(pieces)

    @property
    def num_values(self) -> int:
        """Numbers that are remembered."""
        last = 0 if self._last_TD is None else self._last_TD.numel()
        return self._past.num_values + self._sums_B3.numel() + last

    def _states(self, codes_SK: Tensor) -> Tensor:
        tokenizer, deconv = self.tokenizer, self.decoder.dconv1
        codes_BSK = codes_SK[None, :, : self.num_books].to(device_of(tokenizer))
        quantized_BSD = tokenizer.quantizer.decode(codes_BSK)
        emb_BSD = tokenizer.bridge.up(quantized_BSD.to(tokenizer.bridge.proj_decoder.weight.dtype))
        x_BDT = deconv.conv(emb_BSD.transpose(1, 2))
        gap = deconv.stride - deconv.kernel_size if self._num_codes else 0  # frames that no code reaches
        if gap:
            assert deconv.conv.bias is not None
            x_BDT = torch.cat([deconv.conv.bias[None, :, None].expand(-1, -1, gap), x_BDT], dim=-1)
        begin = self._num_codes * deconv.stride - gap
        self._num_codes += len(codes_SK)
        valid_B1T = torch.ones_like(x_BDT[:, :1], dtype=torch.bool)
        x_BDT, self._sums_B3 = deconv.norm.go_on(x_BDT, valid_B1T, self._sums_B3)
        x_BTD = x_BDT.transpose(1, 2)
        position_TD = self.decoder.positional_embedding[begin : begin + x_BTD.shape[1]]
        x_BTD = x_BTD + position_TD.to(x_BTD.dtype)
        for layer in self.decoder.layers:
            x_BTD = layer(x_BTD, past=self._past)
        hidden_TD: Tensor = self.decoder.layer_norm(x_BTD)[0]
        return hidden_TD
