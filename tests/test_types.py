from __future__ import annotations

import torch

from omniaudio.types import Codes, CodesWaveBatch, Utterance, device_of, is_sharded, valid_steps


def test_valid_steps():
    assert valid_steps(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_a_batch_moves_all_its_tensors():
    codes = Codes(codes_BSK=torch.zeros(1, 2, 8, dtype=torch.long), num_frames_B=torch.tensor([2]))
    batch = CodesWaveBatch(
        keys=["a"], wav_BN=torch.zeros(1, 4), num_samples_B=torch.tensor([4]), sample_rate_hz=16000,
        kinds=["asr"], texts=["t"], languages=["en"], codes=codes,
    )  # fmt: skip
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.wav_BN, moved.num_samples_B, moved.codes.codes_BSK)} == {"meta"}
    assert moved.keys == ["a"] and batch.wav_BN.device.type == "cpu"


def test_a_module_with_a_piece_of_a_parameter_is_sharded():
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    assert not is_sharded(module)
    module[1].bias.ds_id = 3
    assert is_sharded(module) and not is_sharded(module[0])


def test_device_and_duration():
    assert device_of(torch.nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(torch.nn.ReLU()).type == "cpu"
    utterance = Utterance(
        key="a", audio_path="a.flac", sample_rate_hz=8000, num_samples=4000, text="", language="en", speaker="s",
        corpus="c",
    )  # fmt: skip
    assert utterance.duration_sec == 0.5
