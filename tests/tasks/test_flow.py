"""Flow task: only the flow learns, lengths of codes and audio meet, errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.timbre import Timbre
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.tasks.flow import FlowTask
from omniaudio.training.schedule import warmup_cosine
from omniaudio.types import Codes, CodesWaveBatch, MelDecoderOutput

SPEC = MelSpec(24000, 1920, 480, 1920, 4, 0.0, 8000.0, "ln", False)


class CodesAsHidden(nn.Module):
    """Stands for the tokenizer: four hidden frames a code but for the last."""

    code_rate_hz = 12.5
    decoder = None  # not one that was made for chunks

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 6)

    def hidden_length(self, num_frames_B: Tensor) -> Tensor:
        return 4 * num_frames_B - 1

    def decode(self, codes: Codes) -> MelDecoderOutput:
        hidden_BTD = self.embed(codes.codes_BSK.clamp(min=0)[..., 0]).repeat_interleave(4, dim=1)[:, :-1]
        empty = torch.zeros(0)
        return MelDecoderOutput(
            coarse_BMT=empty,
            refined_BMT=empty,
            mel_len_B=empty,
            hidden_BTD=hidden_BTD,
            hidden_len_B=self.hidden_length(codes.num_frames_B),
        )


def new_flow(hidden_rate_hz: float, slots: dict[str, Any]) -> FlowMatchingDecoder:
    prenet, timbre = Prenet(6, 8, 8, 1, 2, 8, num_mels=4), Timbre(4, **slots)
    estimator = ConditionalUNet(4, 8, 1, 1, 2, 4, 16, timbre=timbre)
    return FlowMatchingDecoder(SPEC, prenet, estimator, hidden_rate_hz, mel_mean=-6.0, mel_std=2.0)


def new_task(hidden_rate_hz: float = 50.0, accumulate: int = 1, **slots: Any) -> FlowTask:
    task = FlowTask(
        accumulate=accumulate,
        modules={"tokenizer": CodesAsHidden, "flow": partial(new_flow, hidden_rate_hz, slots)},
        loss_weights={"flow/mse": 1.0, "flow/prior": 1.0},
        optimizer=partial(torch.optim.AdamW, lr=0.001),
        scheduler=partial(warmup_cosine, warmup_share=0.1, min_share=0.1),
        trainable=["flow.*"],
    )
    task.configure_model()
    return task


def new_batch(rate_hz: int = 24000) -> CodesWaveBatch:
    wav_BN: Tensor = 0.1 * torch.randn(2, 13 * 480)
    codes = Codes(
        codes_BSK=torch.tensor([[[1], [2], [3]], [[4], [5], [-1]]]), num_frames_B=torch.tensor([3, 2])
    )
    return CodesWaveBatch(
        keys=["a", "b"],
        wav_BN=wav_BN,
        num_samples_B=torch.tensor([13 * 480, 6 * 480]),
        sample_rate_hz=rate_hz,
        kinds=["asr", "asr"],
        texts=["", ""],
        languages=["en", "en"],
        codes=codes,
    )


def test_losses_and_what_learns() -> None:
    task = new_task()
    terms = task.losses(new_batch(), "train")
    assert task.counted(new_batch(), 1) == {name: int(term.count) for name, term in terms.items()}
    # 3 codes: 11 hidden frames of 13 mel frames; 2 codes: 7 hidden frames, but 6 mel frames
    assert [int(term.count) for term in terms.values()] == [(11 + 6) * 4] * 2
    sum(term.total for term in terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in task.tokenizer.parameters())
    assert all(p.grad is not None for p in task.flow.parameters())


def test_trains_towards_lower_loss() -> None:
    torch.manual_seed(0)
    task, batch = new_task(), new_batch()
    optimizer: Any = torch.optim.AdamW(task.flow.parameters(), lr=0.01)
    priors = []
    for _ in range(20):
        terms = task.losses(batch, "train")
        loss = sum(term.total / term.count for term in terms.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        priors.append(float(terms["flow/prior"].total))
    assert priors[-1] < 0.7 * priors[0]


def test_slots_learn_and_the_speaker_is_told_by_the_mel_of_the_clip(monkeypatch) -> None:
    told, losses = [], FlowMatchingDecoder.losses

    def spied(*args: Any, speaker_BS: Tensor, **kwargs: Any) -> Any:
        told.append(speaker_BS)
        return losses(*args, speaker_BS=speaker_BS, **kwargs)

    monkeypatch.setattr(FlowMatchingDecoder, "losses", spied)
    slots = {"speaker_width": 8, "prompt": True, "speaker_share": 1.0, "prompt_share": 1.0, "max_prompt": 0.9}
    task, batch = new_task(**slots), new_batch()
    torch.manual_seed(1)  # keeps both conditions
    terms = task.losses(batch, "train")
    assert int(terms["flow/mse"].count) < int(terms["flow/prior"].count) == (11 + 6) * 4
    sum(term.total for term in terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in task.flow.parameters())
    mel_BMT, _ = task.mel(batch.wav_BN, batch.num_samples_B)
    standard = (mel_BMT[1, :, :6] + 6) / 2
    expected = torch.cat([standard.mean(1), standard.std(1, correction=0)])
    torch.testing.assert_close(told[0][1], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        UserError, match="timbre.speaker_width 192: this training tells the mean and deviation of each"
    ):
        new_task(speaker_width=192)
    with pytest.raises(UserError, match="accumulate=2: a flow with timbre.prompt=true needs accumulate=1"):
        new_task(accumulate=2, prompt=True)
    new_task(accumulate=2, speaker_width=8)


def test_rates_must_agree() -> None:
    with pytest.raises(UserError, match=r"flow.hidden_rate_hz 25.0: the tokenizer's decoder has 50.0"):
        new_task(25.0)
    with pytest.raises(UserError, match="audio of 16000 Hz"):
        new_task().losses(new_batch(16000), "train")
