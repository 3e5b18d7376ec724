"""Parity of the front ends, the quantizer, and the speech tokenizer with its flow decoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omniaudio.convert.baichuan_audio import model_converter
from omniaudio.convert.parity import Case, Check, Checks, Recording, there_and_back
from omniaudio.convert.parity_acoustic import VOCODER_MEL, build_flow
from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.frontend.mel import LogMel, MelSpec, slaney_filters
from omniaudio.quantizers.bridge import ConvBridge
from omniaudio.quantizers.mel_decoder import MelDecoder
from omniaudio.quantizers.rvq import ResidualVQ
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.types import valid_steps

WHISPER_MEL = MelSpec(16000, 400, 160, 400, 128, 0.0, 8000.0, "whisper", True)
DECODER_MEL = MelSpec(16000, 1024, 256, 1024, 80, 0.0, 8000.0, "ln", True)
MODEL = "audio_tokenizer."
"""What the recorded names lack of the released ones."""


def frontend_cases(of: Recording) -> Iterator[Case]:
    log_mel = LogMel(WHISPER_MEL)

    def filters() -> Checks:
        yield Check("filters", slaney_filters(WHISPER_MEL), of["mel_filters"], 1e-7)

    def case(i: str) -> Checks:
        value = of.sizes(f"cases/{i}/")
        num_samples = of[f"cases/{i}/wav"].shape[-1] if f"cases/{i}/wav" in of.tensors else value("n")
        if f"cases/{i}/wav" in of.tensors:
            mel_BMT, _ = log_mel(of[f"cases/{i}/wav"], torch.tensor([num_samples]))
            yield Check("mel", mel_BMT[0], of[f"cases/{i}/feat"], 2e-4)
        if f"cases/{i}/valid_frames" in of.values:
            encoder, bridge = WhisperEncoder(128, 8, 1, 1, 8), ConvBridge(8, 4)
            frames = min(int(WHISPER_MEL.num_frames(num_samples)), 2 * encoder.max_frames)
            states = int(encoder.output_length(torch.tensor([frames])))
            yield Check("valid frames", frames, value("valid_frames"))
            yield Check("encoder length", states, value("encoder_length"))
            yield Check("bridge length", states // bridge.downsample, value("bridge_length"))

    if "mel_filters" in of.tensors:
        yield Case("frontend filters", filters)
    numbers = {key.split("/")[1] for key in (*of.tensors, *of.values) if key.startswith("cases/")}
    for i in sorted(numbers):  # of long clips only the lengths may be recorded
        yield Case(f"frontend case {i}", partial(case, i))


def mel24k_cases(of: Recording) -> Iterator[Case]:
    def case(i: str) -> Checks:
        wav_BN = of[f"cases/{i}/wav"]
        mel_BMT, _ = LogMel(VOCODER_MEL)(wav_BN, torch.tensor([wav_BN.shape[-1]]))
        yield Check("mel", mel_BMT, of[f"cases/{i}/mel"], 2e-4)

    for i in of.names_below("cases/"):
        yield Case(f"mel24k case {i}", partial(case, i))


def build_tokenizer(of: Recording) -> SpeechTokenizer:
    size = of.sizes("config/audio_config/")
    width = size("d_model")
    return SpeechTokenizer(
        mel_spec=WHISPER_MEL,
        decoder_mel_spec=DECODER_MEL,
        encoder=WhisperEncoder(
            size("num_mel_bins"),
            width,
            size("encoder_layers"),
            size("encoder_attention_heads"),
            size("encoder_ffn_dim"),
        ),
        bridge=ConvBridge(width, size("avg_pooler")),
        quantizer=ResidualVQ(size("avg_pooler") * width, size("vq_config/codebook_sizes")),
        decoder=MelDecoder(
            width,
            DECODER_MEL.num_mels,
            size("decoder_layers"),
            size("decoder_attention_heads"),
            size("decoder_ffn_dim"),
            refine_width=of.values["config/vocoder_config/channels"][0],
        ),
    ).eval()


def packed(x_BSD: Tensor, length_B: Tensor) -> Tensor:
    """Valid rows of all items, one after the other."""
    return x_BSD[valid_steps(length_B, x_BSD.shape[1])]


class TokenizerRecording:
    """The tokenizer and flow decoder of a recording, built and loaded, and what they must compute."""

    def __init__(self, of: Recording) -> None:
        self.of = of
        self.flow_size = of.sizes("config/flow_matching_config/")
        self.tokenizer = build_tokenizer(of)
        self.flow = build_flow(
            of.below("state_dict/audio_flow_matching_decoder."),
            self.flow_size("prenet_attention_heads"),
            self.flow_size("num_heads"),
        )

    def cases(self) -> Iterator[Case]:
        theirs = {MODEL + key: value for key, value in self.of.below("state_dict/").items()}
        modules = {"tokenizer": self.tokenizer, "flow": self.flow}
        yield there_and_back(modules, theirs, model_converter())
        for case in self.of.names_below("cases/"):
            yield Case(f"tokenizer {case}: mel to codes", partial(self.encode, case))
            yield Case(f"tokenizer {case}: codes to mel", partial(self.decode, case))

    def recorded(self, case: str, name: str) -> Tensor:
        return self.of[f"cases/{case}/{name}"]

    def encode(self, case: str) -> Checks:
        tokenizer, recorded = self.tokenizer, partial(self.recorded, case)
        frames_B = torch.tensor(self.of.values[f"cases/{case}/frames"])
        hidden_BTD, hidden_len_B = tokenizer.encoder(recorded("mel"), frames_B)
        z_BSD, length_B = tokenizer.bridge.down(hidden_BTD, hidden_len_B)
        codes_BSK = tokenizer.quantizer.encode(z_BSD, valid_steps(length_B, z_BSD.shape[1]))
        quantized_BSD = tokenizer.quantizer.decode(codes_BSK)
        yield Check("encoder length", hidden_len_B, recorded("encoder_length"))
        yield Check("bridge length", length_B, recorded("bridge_length"))
        yield Check("encoder", hidden_BTD, recorded("encoder_out"), 1e-4)
        yield Check("before the quantizer", z_BSD, recorded("pre_vq"), 1e-4)
        yield Check("codes", packed(codes_BSK, length_B), recorded("codes"))
        yield Check("sum of the books", packed(quantized_BSD, length_B), recorded("vq_sum"), 1e-4)
        emb_BSD = tokenizer.bridge.up(quantized_BSD)
        yield Check("decoder input", packed(emb_BSD, length_B), recorded("decoder_emb"), 1e-4)

    def decode(self, case: str) -> Checks:
        """From codes to mels and flow; an item that has padding beside it is held against itself alone."""
        length_B = self.recorded(case, "bridge_length").long()
        emb_FD = self.recorded(case, "decoder_emb")
        out = self.tokenizer.decoder(
            pad_sequence(emb_FD.split(length_B.tolist()), batch_first=True), length_B
        )
        mu = self.flow.prenet(out.hidden_BTD, out.hidden_len_B, self.flow.mel_length(out.hidden_len_B))
        noise, steps = self.recorded(case, "fm_noise"), self.flow_size("diffusion_steps")
        guidance = self.flow_size("cfm_params/inference_cfg_rate")
        mel_BMT, mel_len_B = self.flow.decode(out.hidden_BTD, out.hidden_len_B, steps, guidance, noise)
        for row, length in enumerate(length_B.tolist()):
            source, at = self._alone(case, row, length)
            wanted = partial(self.recorded, source)
            hidden_TD = wanted("hidden_before_dconv2_packed").split(wanted("len_before_dconv2").tolist())[at]
            num_mel, num_flow = int(wanted("mel_length")[at]), int(wanted("fm_mel_len")[at])
            who = f"item {row}: "
            yield Check(
                f"{who}hidden states", out.hidden_BTD[row, : int(out.hidden_len_B[row])], hidden_TD, 1e-4
            )
            yield Check(f"{who}mel length", out.mel_len_B[row], num_mel)
            yield Check(f"{who}flow length", mel_len_B[row], num_flow)
            for name, x_BMT in (("coarse_mel", out.coarse_BMT), ("refined_mel", out.refined_BMT)):
                yield Check(f"{who}{name}", x_BMT[row, :, :num_mel].T, wanted(name)[at, :num_mel], 1e-4)
            mu_TM = mu[row, :, :num_flow].T
            yield Check(f"{who}prenet", mu_TM, wanted("prenet_out")[at, :num_flow], 1e-4)
            if torch.equal(noise[row, :, :num_flow], wanted("fm_noise")[at, :, :num_flow]):
                flow_TM = mel_BMT[row, :, :num_flow].T
                yield Check(f"{who}flow", flow_TM, wanted("fm_mel")[at, :num_flow], 1e-3)

    def _alone(self, case: str, row: int, length: int) -> tuple[str, int]:
        """The case, and the row in it, where this item has no padding beside it."""
        length_B = self.recorded(case, "bridge_length")
        if length == int(length_B.max()):
            return case, row
        codes_SK = self.recorded(case, "codes").split(length_B.tolist())[row]
        for other in self.of.names_below("cases/"):
            single = len(self.recorded(other, "bridge_length")) == 1
            if single and torch.equal(self.recorded(other, "codes"), codes_SK):
                return other, 0
        raise LookupError(f"no case holds item {row} of {case} alone, and the reference depends on padding")


def tokenizer_cases(of: Recording) -> Iterator[Case]:
    yield from TokenizerRecording(of).cases()


def rvq_cases(of: Recording) -> Iterator[Case]:
    entries = [of[f"embeds/{i}"] for i in range(len(of.names_below("embeds/")))]
    quantizer = ResidualVQ(entries[0].shape[1], [len(entry) for entry in entries]).eval()
    for book, entry in zip(quantizer.books, entries, strict=True):
        book.get_buffer("embed").copy_(entry)
    valid_BS = valid_steps(of["lens"], of["x"].shape[1])

    def codes(dtype: torch.dtype, name: str) -> Checks:
        codes_BSK = quantizer.encode(of["x"].to(dtype), valid_BS)
        yield Check("codes", codes_BSK, of[name])
        if dtype == torch.float32:
            first_BS = codes_BSK[..., 0]
            yield Check("first book", first_BS[valid_BS], of["first_layer_idx"][valid_BS])
            entry_BSD = quantizer.decode(codes_BSK[..., :1])
            yield Check("its entries", entry_BSD[valid_BS], of["first_layer_quant"][valid_BS], 1e-6)
            totals = [quantizer.decode(codes_BSK[..., : k + 1]) for k in range(len(entries))]
            errors = [float((of["x"] - total)[valid_BS].square().mean()) for total in totals]
            yield Check("error by depth", errors, of.values["mse_by_depth"], 1e-5)

    yield Case("rvq in float32", lambda: codes(torch.float32, "codes_fp32"))
    yield Case("rvq with a bfloat16 residual", lambda: codes(torch.bfloat16, "codes_bf16"))
