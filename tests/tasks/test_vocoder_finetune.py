"""Vocoder on the flow's mels: what it reads, who learns, resume, parts that do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omniaudio.acoustic.flow_matching import FlowMatchingDecoder
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.cli.main import compose
from omniaudio.cli.train import token_layout
from omniaudio.dialogue.folder import write_model
from omniaudio.dialogue.speech_stream import StreamSettings
from omniaudio.draws import key_places
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.tasks.vocoder_finetune import VocoderFinetuneTask
from omniaudio.training.artifacts import load_module
from omniaudio.types import Codes, CodesWaveBatch
from tests.conftest import run_stage, train_words
from tests.dialogue.tiny_experiment import BOOKS, flow_config, save_part, tokenizer_config, write_experiment
from tests.tasks.test_flow import CodesAsHidden
from tests.tasks.test_vocoder import SPEC, SharedWaves, WaveSource, new_task, run


def new_flow(spec: MelSpec = SPEC, hidden_rate_hz: float = 50.0) -> FlowMatchingDecoder:
    prenet = Prenet(6, 8, 8, 1, 2, 8, num_mels=spec.num_mels)
    return FlowMatchingDecoder(
        spec, prenet, ConditionalUNet(spec.num_mels, 8, 1, 1, 2, 4, 16), hidden_rate_hz
    )


class CodesWaveSource(WaveSource):
    """Waveforms of 12 frames with 3 and 2 codes: 11 and 7 frames of the flow."""

    def batch(self, step: int, part: int, num_parts: int) -> CodesWaveBatch:
        waves = super().batch(step, part, num_parts)
        codes_BSK = torch.tensor([[[step % 8], [2], [3]], [[4], [5], [-1]]])
        codes = Codes(codes_BSK=codes_BSK, num_frames_B=torch.tensor([3, 2]))
        keys = [f"wave-{step}-0", f"wave-{step}-1"]
        return CodesWaveBatch(**{**vars(waves), "keys": keys}, codes=codes)


class SharedCodes(SharedWaves, CodesWaveSource):
    """The processes share one batch out."""

    def batch(self, step: int, part: int, num_parts: int) -> CodesWaveBatch:
        batch, own = super().batch(step, part, num_parts), slice(part, None, num_parts)
        assert isinstance(batch, CodesWaveBatch)
        codes = Codes(codes_BSK=batch.codes.codes_BSK[own], num_frames_B=batch.codes.num_frames_B[own])
        return dataclasses.replace(batch, codes=codes)


def finetune(flow: Any = new_flow, **settings: Any) -> VocoderFinetuneTask:
    plain = new_task()
    arguments: dict[str, Any] = {
        "modules": {**plain._factories, "tokenizer": CodesAsHidden, "flow": flow},
        "mel_loss_specs": plain.mel_loss_specs,
        "judged_frames": 6,
        "loss_weights": plain.loss_weights,
        "optimizer": plain._make_optimizer,
        "scheduler": plain._make_scheduler,
        "trainable": ["vocoder.*", "discriminator.*"],
        "max_steps": 4,
        "flow_steps": 2,
        "crop_frames": 8,
    }
    return VocoderFinetuneTask(**{**arguments, **settings})


def test_the_mel_is_the_flows_and_the_target_is_the_waveform_of_the_same_time() -> None:
    task = finetune(crop_frames=None)
    task.configure_model()
    batch = CodesWaveSource().batch(0, 0, 1)
    mel_BMT, wav_BN = task.mel_and_target(batch)
    made_BMT, made_len_B = task.flow_mel(batch)
    true_BMT, true_wav_BN = super(VocoderFinetuneTask, task).mel_and_target(batch)
    assert made_len_B.tolist() == [11, 7] and torch.equal(wav_BN, true_wav_BN)
    for i, length in enumerate((11, 7)):
        assert torch.equal(mel_BMT[i, :, :length], made_BMT[i, :, :length])
        assert torch.equal(mel_BMT[i, :, length:], true_BMT[i, :, length:]), "what the tokenizer drops"
    task.crop_frames = 5
    crops = {tuple(task.mel_and_target(batch)[1][0, :3].tolist()) for _ in range(30)}
    starts = {tuple(wav_BN[0, 480 * first :][:3].tolist()): first for first in range(8)}
    assert len(crops) > 3 and crops <= set(starts)
    cropped_BMT, cropped_BN = task.mel_and_target(batch)
    first = starts[tuple(cropped_BN[0, :3].tolist())]
    assert torch.equal(cropped_BMT[0], mel_BMT[0, :, first : first + 5]) and cropped_BN.shape == (2, 5 * 480)


def test_frozen_parts_stay_and_a_stopped_run_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    whole_task, again_task = finetune(), finetune()
    whole = run(tmp_path / "whole", whole_task, stop=4, kind=CodesWaveSource)
    run(tmp_path / "broken", finetune(), stop=3, kind=CodesWaveSource)
    assert run(tmp_path / "broken", again_task, stop=4, resume=True, kind=CodesWaveSource) == whole
    fresh = finetune()
    fresh.configure_model()
    before, after = fresh.state_dict(), whole_task.state_dict()
    still = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in before if name.startswith(("tokenizer.", "flow."))} <= still
    assert not any(
        p.requires_grad for p in [*whole_task.flow.parameters(), *whole_task.tokenizer.parameters()]
    )
    assert {name.split(".")[0] for name in before.keys() - still} == {"vocoder", "discriminator"}
    for name, value in again_task.state_dict().items():
        assert torch.equal(value, after[name])


def make_streaming(exp_dir: Path) -> None:
    """Tokenizer and flow of an experiment as ``mel_decoder=streaming flow=streaming`` makes them."""
    tokenizer, flow = tokenizer_config(), flow_config()
    tokenizer["decoder"]["_target_"] = "omniaudio.quantizers.mel_decoder.CausalMelDecoder"
    for part in ("prenet", "estimator"):
        flow[part]["look_back"] = 20
    made = save_part(exp_dir / "tokenizer/final/tokenizer", tokenizer)
    save_part(exp_dir / "flow/final/flow", flow, made.fingerprint())


@pytest.mark.parametrize("streaming", [False, True])
def test_it_reads_what_evaluation_hears_with_the_same_seed(tmp_path: Path, streaming: bool) -> None:
    exp_dir, _ = write_experiment(tmp_path)
    if streaming:
        make_streaming(exp_dir)
    parts = {"tokenizer": "tokenizer", "lm": "sft", "flow": "flow", "vocoder": "vocoder"}
    folders = {part: exp_dir / stage / "final" / part for part, stage in parts.items()}
    numbers = {"flow_steps": 3, "flow_guidance": 0.5, "flow_solver": "midpoint", "flow_warp": "uniform"}
    stream = {
        "_target_": "omniaudio.dialogue.speech_stream.StreamSettings",
        "chunk_frames": 5,
        "first_frames": 2,
    }
    settings: dict[str, Any] = {**numbers, "stream": stream}
    model = write_model(exp_dir / "model", folders, exp_dir / "text_lm/tokenizer.json", settings)
    task = finetune(
        modules={
            **new_task()._factories,
            **{
                name: (lambda name=name: load_module(folders[name]))
                for name in ("tokenizer", "flow", "vocoder")
            },
        },
        **numbers,
        stream=model.settings.stream,
    )
    task.configure_model()
    codes_BSK = torch.stack([torch.randint(size, (2, 30)) for size in BOOKS], dim=-1)
    codes_BSK[1, 20:] = -1
    waves = WaveSource().batch(0, 0, 1)
    batch = CodesWaveBatch(
        **{**vars(waves), "keys": ["en/a", "it/b"]},
        codes=Codes(codes_BSK=codes_BSK, num_frames_B=torch.tensor([30, 20])),
    )
    made_BMT, made_len_B = task.flow_mel(batch)
    for i, (key, num_codes) in enumerate((("en/a", 30), ("it/b", 20))):
        alone = Codes(codes_BSK=codes_BSK[i : i + 1, :num_codes], num_frames_B=torch.tensor([num_codes]))
        seed = int(key_places([key], torch.device("cpu")))
        mel_BMT, mel_len_B = model.mel(alone, path="flow", seed=seed)
        assert int(mel_len_B) == int(made_len_B[i])
        torch.testing.assert_close(made_BMT[i, :, : int(mel_len_B)], mel_BMT[0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model.mel(alone, path="flow", seed=seed + 1)[0], mel_BMT, atol=1e-2)
    model.settings = dataclasses.replace(model.settings, stream=StreamSettings())
    at_once_BMT, _ = model.mel(alone, path="flow", seed=seed)
    assert torch.allclose(at_once_BMT, mel_BMT, atol=1e-4) is not streaming, (
        "chunks matter where they are kept"
    )


def test_the_export_and_the_training_take_the_same_words() -> None:
    words = [
        "scale=tiny", "dialogue.flow_steps=4", "dialogue.flow_guidance=0", "dialogue.flow_solver=heun",
        "dialogue.flow_warp=uniform", "dialogue.stream.chunk_frames=25",
    ]  # fmt: skip
    for said in (words, words[:1]):
        train = compose("train", ["experiment=baichuan_audio/vocoder_finetune", *said])["task"]
        export = compose("export", ["system=baichuan_audio", *said])["dialogue"]
        names = {name for name in export if name.startswith("flow_")} | {"stream"}
        assert len(names) == 5 and {name: train[name] for name in names} == {n: export[n] for n in names}
        assert (train["flow_steps"], train["stream"]["chunk_frames"]) == (
            (4, 25) if said == words else (10, 12)
        )


def test_parts_must_fit() -> None:
    other = MelSpec(24000, 1920, 480, 1920, 8, 0.0, 12000.0, "ln", False)
    with pytest.raises(UserError, match=r"the flow makes .*12000.0.*, the vocoder reads .*8000.0"):
        finetune(lambda: new_flow(other)).configure_model()
    with pytest.raises(UserError, match=r"flow.hidden_rate_hz 25.0: the tokenizer's decoder has 50.0"):
        finetune(lambda: new_flow(hidden_rate_hz=25.0)).configure_model()


def test_the_stage_begins_with_vocoder_and_discriminators_and_leaves_them(
    tiny_chain, tiny_data, tmp_path
) -> None:
    for name in ("tokenizer", "codes", "flow", "vocoder"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    run_stage("vocoder_finetune", tiny_data, tmp_path, "optim.lr=0", "seed=1")  # born of another seed
    folder = tmp_path / "vocoder_finetune"
    record = json.loads((folder / "freeze.json").read_text())
    assert {name.split(".")[0] for name in record["frozen"]} == {"tokenizer", "flow"}
    assert all(before == after for before, after in record["frozen"].values())
    for part in ("vocoder", "discriminator"):
        before, after = (
            load_file(stage / "final" / part / "model.safetensors")
            for stage in (tmp_path / "vocoder", folder)
        )
        assert all(torch.equal(value, after[name]) for name, value in before.items()), "rate 0: the same"
    facts = json.loads((folder / "final/vocoder/fingerprint.json").read_text())
    assert facts == {**facts, **json.loads((tmp_path / "flow/final/flow/fingerprint.json").read_text())}


def test_a_vocoder_without_discriminators_is_told_and_they_may_begin_anew(
    tiny_chain, tiny_data, tmp_path, capsys
) -> None:
    """What an older version finished: given again without its stamp, its command adds them."""
    for name in ("tokenizer", "codes", "flow"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    often = ["checkpoint_every_steps=1", "val_every_steps=5"]
    run_stage("vocoder", tiny_data, tmp_path, *often)
    judge = tmp_path / "vocoder/final/discriminator"
    kept = load_file(judge / "model.safetensors")
    shutil.rmtree(judge)
    expected = f"init.discriminator: {judge} is missing; .* begin anew: 'init={{discriminator: null}}'"
    with pytest.raises(UserError, match=expected):
        run_stage("vocoder_finetune", tiny_data, tmp_path)
    run_stage("vocoder_finetune", tiny_data, tmp_path, "init={discriminator: null}")
    assert (tmp_path / "vocoder_finetune/final/discriminator/model.safetensors").is_file()
    (tmp_path / "vocoder/stamp.json").unlink()
    run_stage("vocoder", tiny_data, tmp_path, *often)
    assert "going on from step 2 of 2" in capsys.readouterr().out
    found = load_file(judge / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in kept.items())


def test_a_flow_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    for name, weights in (("tokenizer", "a1"), ("flow", "b2")):
        folder = tmp_path / name / "final" / name
        folder.mkdir(parents=True)
        (folder / "fingerprint.json").write_text(json.dumps({"tokenizer_weights": weights}))
    config = compose("train", train_words("vocoder_finetune", tmp_path, tmp_path))
    with pytest.raises(UserError, match="tokenizer_weights: 'b2' there, 'a1' here"):
        token_layout(config, {})
