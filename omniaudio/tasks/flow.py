"""Flow-matching training: codes through the frozen tokenizer's decoder to hidden states, then to a mel."""

from __future__ import annotations

import torch

from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.draws import Draws
from omniaudio.errors import UserError
from omniaudio.frontend.mel import LogMel
from omniaudio.quantizers.mel_decoder import FRAMES_PER_CODE
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.tasks.base import LossTerm, Task, step_seed
from omniaudio.types import CodesWaveBatch


class FlowTask(Task):
    """Losses ``flow/mse`` (velocity) and ``flow/prior`` (L1 of the prenet's guess), arXiv:2502.17239.

    Modules: ``tokenizer`` (SpeechTokenizer; freeze it) and ``flow`` (FlowMatchingDecoder). A flow with a slot for the
    speaker is told ``flow.speaker_of`` the clip's own mel.
    """

    tokenizer: SpeechTokenizer
    flow: FlowMatchingDecoder
    mel: LogMel

    def configure_model(self) -> None:
        if self._modules:
            return
        super().configure_model()
        self.mel = LogMel(self.flow.mel_spec)
        rate_hz = self.tokenizer.code_rate_hz * FRAMES_PER_CODE
        if self.flow.hidden_rate_hz != rate_hz:
            raise UserError(
                f"flow.hidden_rate_hz {self.flow.hidden_rate_hz}: the tokenizer's decoder has {rate_hz}"
            )
        timbre = self.flow.estimator.timbre
        # What is shown of an item does not count, and is drawn with the losses.
        if timbre.prompt and self.accumulate > 1:
            raise UserError(
                f"accumulate={self.accumulate}: a flow with timbre.prompt=true needs accumulate=1"
            )
        width, told = timbre.speaker_width, 2 * self.flow.mel_spec.num_mels
        if width not in (0, told):
            raise UserError(
                f"timbre.speaker_width {width}: this training tells the mean and deviation of each bin of the mel, "
                f"{told}; vectors of an encoder of speakers are given to FlowMatchingDecoder.losses by a task of "
                "your own"
            )

    def losses(self, batch: CodesWaveBatch, split: str) -> dict[str, LossTerm]:
        """All losses of a batch at the flow's sample rate."""
        rate_hz = self.flow.mel_spec.sample_rate_hz
        if batch.sample_rate_hz != rate_hz:
            raise UserError(f"audio of {batch.sample_rate_hz} Hz; the flow's mel is made from {rate_hz} Hz")
        with torch.no_grad():
            decoded = self.tokenizer.decode(batch.codes)
            with torch.autocast(batch.wav_BN.device.type, enabled=False):
                mel_BMT, mel_len_B = self.mel(batch.wav_BN, batch.num_samples_B)
        chunks = None
        if split == "train":  # the same for all of a step
            chunks = self.flow.draw_chunks(Draws(step_seed(self.seed, self.step_number, 0, "chunks")))
        told = self.flow.estimator.timbre.speaker_width > 0
        terms = self.flow.losses(
            decoded.hidden_BTD, decoded.hidden_len_B, mel_BMT, mel_len_B, chunks=chunks,
            speaker_BS=self.flow.speaker_of(mel_BMT, mel_len_B) if told else None,
        )  # fmt: skip
        return {name: LossTerm(total, count) for name, (total, count) in terms.items()}

    def counted(self, batch: CodesWaveBatch, number: int) -> dict[str, float]:
        made_len_B = self.flow.mel_length(self.tokenizer.hidden_length(batch.codes.num_frames_B))
        length_B = torch.minimum(made_len_B, self.flow.mel_spec.num_frames(batch.num_samples_B))
        return dict.fromkeys(("flow/mse", "flow/prior"), int(length_B.sum()) * self.flow.mel_spec.num_mels)
