"""Vocoder training on the mels that it meets in use: those of the flow, which are smoother than true ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.dialogue.model import DialogueSettings
from omniaudio.dialogue.speech_stream import StreamSettings, chunks_of
from omniaudio.draws import key_places
from omniaudio.errors import UserError
from omniaudio.quantizers.mel_decoder import FRAMES_PER_CODE
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.tasks.vocoder import VocoderTask
from omniaudio.types import CodesWaveBatch, WaveBatch, valid_steps


class VocoderFinetuneTask(VocoderTask):
    """The vocoder reads what tokenizer and flow make of a clip's codes; the target is the clip's waveform.

    Codes keep the clip's time, so frame t of the flow's mel stands for the samples of frame t. The last frames of a
    clip, which the tokenizer drops, are read as true mel. A clip's mel is the same whenever it comes: its noise is
    drawn from its key.

    Modules: ``tokenizer`` and ``flow`` (freeze both), ``vocoder`` and ``discriminator``. Losses as in VocoderTask.

    Args:
        flow_steps, flow_guidance, flow_solver, flow_warp, stream: as the export is going to speak, see
            DialogueSettings. ``stream`` tells only for parts that were made for chunks (see ``chunks_of``).
        crop_frames: a step trains on a random stretch of so many frames of each clip; None is all.
        kwargs: see VocoderTask.
    """

    tokenizer: SpeechTokenizer
    flow: FlowMatchingDecoder

    def __init__(
        self,
        flow_steps: int = 10,
        flow_guidance: float = 0.7,
        flow_solver: str = "euler",
        flow_warp: str = "cosine",
        stream: StreamSettings | None = None,
        crop_frames: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spoken = DialogueSettings(
            flow_steps=flow_steps, flow_guidance=flow_guidance, flow_solver=flow_solver, flow_warp=flow_warp,
            stream=stream or StreamSettings(),
        )  # fmt: skip
        self.crop_frames = crop_frames

    def configure_model(self) -> None:
        if self._modules:
            return
        super().configure_model()
        if self.flow.mel_spec != self.mel.spec:
            raise UserError(f"the flow makes {self.flow.mel_spec}, the vocoder reads {self.mel.spec}")
        rate_hz = self.tokenizer.code_rate_hz * FRAMES_PER_CODE
        if self.flow.hidden_rate_hz != rate_hz:
            raise UserError(
                f"flow.hidden_rate_hz {self.flow.hidden_rate_hz}: the tokenizer's decoder has {rate_hz}"
            )

    def mel_and_target(self, batch: WaveBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, CodesWaveBatch), "codes_dir is not set"
        true_BMT, wav_BN = super().mel_and_target(batch)
        made_BMT, made_len_B = self.flow_mel(batch)
        num_frames = min(true_BMT.shape[2], made_BMT.shape[2])
        made_B1T = valid_steps(made_len_B, num_frames)[:, None]
        mel_BMT = true_BMT.clone()
        mel_BMT[:, :, :num_frames] = torch.where(
            made_B1T, made_BMT[:, :, :num_frames], true_BMT[:, :, :num_frames]
        )
        return self._cropped(mel_BMT, wav_BN, batch.num_samples_B // self.hop)

    @torch.no_grad()
    def flow_mel(self, batch: CodesWaveBatch) -> tuple[Tensor, Tensor]:
        """Codes to mel_BMT and mel_len_B, each clip with the noise of its key: alike in any batch, on any rank."""
        device = batch.wav_BN.device
        with torch.autocast(device.type, enabled=False):
            decoded = self.tokenizer.decode(batch.codes)
            num_frames = int(self.flow.mel_length(decoded.hidden_len_B).max())
            seeds = key_places(batch.keys, torch.device("cpu")).tolist()
            noise = [
                self.flow.draw_noise(num_frames, torch.Generator().manual_seed(seed), device)
                for seed in seeds
            ]
            return self.flow.decode(
                decoded.hidden_BTD,
                decoded.hidden_len_B,
                noise=torch.cat(noise),
                chunks=chunks_of(self.tokenizer, self.flow, self.spoken.stream),
                **self.spoken.flow_options(),
            )

    def _cropped(self, mel_BMT: Tensor, wav_BN: Tensor, num_frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """The same random stretch of each clip's mel and waveform, within the clip if it is long enough."""
        kept = min(self.crop_frames or mel_BMT.shape[2], mel_BMT.shape[2])
        spare_B = (num_frames_B - kept).clamp(min=0)
        first_B = (torch.rand(len(spare_B)).to(spare_B.device) * (spare_B + 1)).long()
        rows = list(enumerate(first_B.tolist()))
        mels = [mel_BMT[i, :, first : first + kept] for i, first in rows]
        wavs = [wav_BN[i, first * self.hop : (first + kept) * self.hop] for i, first in rows]
        return torch.stack(mels), torch.stack(wavs)
