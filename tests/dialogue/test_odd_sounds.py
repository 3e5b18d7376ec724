"""Sounds that are no speech go through every part: finite numbers, the length of any sound, gradients to learn from."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import omniaudio
from omniaudio.dialogue.model import SpokenLanguageModel
from omniaudio.dialogue.speech_stream import SpeechStream, StreamSettings
from omniaudio.frontend.audio import resample, write_wav
from omniaudio.frontend.mel import LogMel
from omniaudio.losses.mel import SCALES, mel_distance
from omniaudio.types import WaveBatch
from tests.tasks.test_vocoder import WITH_F0, new_task
from tests.vocoders.vocoder_fixtures import ALL

RATE_HZ, SECONDS = 16_000, 1.2
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "odd_sounds.py"))
SOUNDS: dict[str, np.ndarray] = TOOL["sounds"](RATE_HZ, SECONDS)


def checked(wav_N: np.ndarray) -> int:
    """Number of samples, which are all finite and within [-1, 1]."""
    assert wav_N.dtype == np.float32 and np.isfinite(wav_N).all() and np.abs(wav_N).max(initial=0.0) <= 1
    return len(wav_N)


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_that_are_no_speech_go_through_every_part(model: SpokenLanguageModel, name: str) -> None:
    wav_N = SOUNDS[name]
    codes = model.encode(wav_N, RATE_HZ)
    assert codes.codes_BSK.shape == (1, 15, 3)
    for book, size in enumerate(model.tokenizer.codebook_sizes):
        assert 0 <= int(codes.codes_BSK[..., book].min()) <= int(codes.codes_BSK[..., book].max()) < size
    for path in ("flow", "refined", "coarse"):
        mel_BMT, _ = model.mel(codes, path=path)
        assert mel_BMT.isfinite().all() and mel_BMT.abs().max() < 100
        stream = SpeechStream(model, StreamSettings(chunk_frames=4, first_frames=2), path=path)
        streamed_N = np.concatenate([stream.push(codes.codes_BSK[0]), stream.finish()])
        assert checked(streamed_N) == checked(model.decode(codes, path=path)) > 1.1 * 24_000
    assert checked(model.copy_synthesis(wav_N, RATE_HZ)) == 1.2 * 24_000


@pytest.mark.parametrize("name", SOUNDS)
def test_every_vocoder_says_what_it_can_of_their_mels(model: SpokenLanguageModel, name: str) -> None:
    mel_BMT, _ = model.true_mel(SOUNDS[name], RATE_HZ)
    for make in ALL.values():
        torch.manual_seed(0)
        vocoder = make().eval()
        with torch.no_grad():
            checked(vocoder(mel_BMT[:, : vocoder.mel_spec.num_mels])[0].numpy())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SOUNDS)
def test_they_can_be_learned_from(model: SpokenLanguageModel, name: str) -> None:
    """One batch of nothing else: losses and gradients of tokenizer and flow stay finite."""
    wav_BN, length_B = torch.from_numpy(SOUNDS[name])[None], torch.tensor([len(SOUNDS[name])])
    tokenizer, flow = (copy.deepcopy(part).train() for part in (model.tokenizer, model.flow))
    _, decoded = tokenizer.reconstruct(*tokenizer.log_mel(wav_BN, length_B), bypass_share=0.5)
    target_BMT, target_len_B = tokenizer.decoder_mel(wav_BN, length_B)
    both_B = torch.minimum(decoded.mel_len_B, target_len_B)
    total, count = mel_distance(decoded.refined_BMT, target_BMT, both_B, SCALES[0], None)
    mel_BMT, mel_len_B = LogMel(flow.mel_spec)(*resampled(wav_BN))
    terms = flow.losses(decoded.hidden_BTD, decoded.hidden_len_B, mel_BMT, mel_len_B)
    loss = total / count + sum(value / number for value, number in terms.values())
    loss.backward()
    assert float(loss.detach()) < 100
    gradients = [p.grad for p in (*tokenizer.parameters(), *flow.parameters()) if p.grad is not None]
    assert len(gradients) > 50 and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", SOUNDS)
def test_vocoders_and_discriminators_can_be_learned_from_them(name: str, kind: str) -> None:
    """The two passes of a step on nothing else, as a vocoder is born: no loss and no gradient explodes."""
    wav_BN, num_samples_B = resampled(torch.from_numpy(SOUNDS[name])[None])
    batch = WaveBatch(
        keys=[name], wav_BN=wav_BN, num_samples_B=num_samples_B, sample_rate_hz=24_000, kinds=["asr"], texts=[""],
        languages=["en"],
    )  # fmt: skip
    task = new_task(ALL[kind], loss_weights=WITH_F0)
    task.configure_model()
    for terms in task.rehearsed(batch):
        task.zero_grad()
        total = sum(term.total / term.count for term in terms.values())
        total.backward()  # type: ignore[union-attr]
        assert float(total.detach()) < 1000  # type: ignore[union-attr]
        norms = [float(p.grad.norm()) for p in task.parameters() if p.grad is not None]
        assert len(norms) > 10 and max(norms) < 1e4  # not a number fails too


def resampled(wav_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wav_N = torch.from_numpy(resample(wav_BN[0].numpy(), RATE_HZ, 24_000))
    return wav_N[None], torch.tensor([len(wav_N)])


def test_the_tool_tells_how_loud_they_come_back(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "clip.wav", np.full(RATE_HZ, 0.25, np.float32), RATE_HZ)
    assert TOOL["main"]([str(exported), "--speech", str(tmp_path / "clip.wav")]) == 0
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    )
    assert head == ["rms / peak", "in", "copy synthesis", "refined mel", "flow", "finite, within [-1, 1]"]
    assert [row[0] for row in rows] == [*SOUNDS, "clip"] and {row[-1] for row in rows} == {"yes"}
    told = {row[0]: [float(number) for number in row[1].split(" / ")] for row in rows}
    assert told["silence"] == [0, 0] and told["tone of 100 Hz"] == [0.3536, 0.5] and told["clipping"][1] == 1
    assert told["clip"][0] == pytest.approx(0.25, abs=0.01)
    assert all(float(cell.split(" / ")[0]) > 0 for row in rows for cell in row[2:5]), (
        "nothing comes back as nothing"
    )


@pytest.mark.parametrize("sample", [float("nan"), float("inf"), -1.01])
def test_the_tool_fails_where_one_comes_back_broken(
    model: SpokenLanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sample: float,
) -> None:
    def broken(wav_N: np.ndarray, rate_hz: int) -> np.ndarray:
        return np.array([0.0, sample if wav_N.any() else 1.0], np.float32)

    monkeypatch.setattr(omniaudio, "load", lambda folder: model)
    monkeypatch.setattr(model, "copy_synthesis", broken)
    monkeypatch.setattr(model, "decode", lambda codes, path: np.zeros(2, np.float32))
    assert TOOL["main"](["folder"]) == 1
    assert [line.split("|")[-2].strip() for line in capsys.readouterr().out.splitlines()[2:]] == ["yes"] + [
        "no"
    ] * 4
