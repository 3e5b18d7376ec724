from __future__ import annotations

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch

from omniaudio.dialogue import curve
from omniaudio.dialogue.curve import find_trained, make_sounds, score_stage, table, with_part
from omniaudio.dialogue.evaluation import Clip, choose_clips, synthesize
from omniaudio.dialogue.folder import layout_of
from omniaudio.errors import UserError
from tests.dialogue.tiny_experiment import flow_config, save_part, vocoder_config

STEPS = [50, 100, 200]
NAMES = ["step-00000050", "step-00000100", "step-00000200"]


def quiet(items, description):
    return items


@pytest.fixture(scope="module")
def clips(trained) -> list[Clip]:
    return choose_clips(trained[1] / "shards", "test", 2)


def test_milestones_and_end_of_a_stage(trained):
    found = find_trained(trained[0] / "flow")
    assert found.part == "flow" and list(found.folders) == STEPS
    assert found.folders[200] == trained[0] / "flow/final/flow"


def test_a_milestone_of_the_last_step_is_the_end(trained, tmp_path):
    shutil.copytree(trained[0] / "vocoder", tmp_path / "vocoder")
    shutil.move(tmp_path / "vocoder/milestones/step-00000100", tmp_path / "vocoder/milestones/step-00000200")
    found = find_trained(tmp_path / "vocoder")
    assert found.folders[200].parts[-2] == "final" and list(found.folders) == [50, 200]


def test_stages_without_such_a_part_are_one_line(trained):
    with pytest.raises(
        UserError, match=r"^config curve.stages: .*/sft/final holds none of flow, vocoder; run"
    ):
        find_trained(trained[0] / "sft")


def test_one_part_is_changed_and_the_export_stays(model, trained):
    before = {name: tensor.clone() for name, tensor in model.flow.state_dict().items()}
    folder = find_trained(trained[0] / "flow").folders[50]
    changed = with_part(model, layout_of(model), "flow", folder)
    assert all(getattr(changed, name) is getattr(model, name) for name in ("tokenizer", "lm", "vocoder"))
    assert not all(torch.equal(changed.flow.state_dict()[name], before[name]) for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.flow.state_dict().items())
    assert not changed.training


@pytest.mark.parametrize(("stage", "variant"), [("flow", "flow"), ("vocoder", "copy")])
def test_every_sound_is_that_of_its_step_and_the_last_that_of_the_export(
    model, trained, clips, stage, variant
):
    found = find_trained(trained[0] / stage)
    made = make_sounds(model, found, clips, quiet)
    for clip, (wavs, mels) in zip(clips, made, strict=True):
        assert list(wavs) == list(mels) == ["original", *NAMES]
        for name, step in zip(NAMES, STEPS, strict=True):
            changed = with_part(model, layout_of(model), stage, found.folders[step])
            expected = synthesize(changed, clip, model.encode(clip.wav_N, clip.sample_rate_hz))[0][variant]
            np.testing.assert_array_equal(wavs[name], expected)
            assert mels[name].shape[0] == model.mel_spec.num_mels
        of_export = synthesize(model, clip, model.encode(clip.wav_N, clip.sample_rate_hz))[0][variant]
        np.testing.assert_allclose(wavs[NAMES[-1]], of_export, atol=1e-5)  # its weight norm is folded
        assert np.abs(wavs[NAMES[0]] - of_export).max() > 3e-5, "a tiny vocoder"


def test_one_milestone_is_in_memory_at_a_time(model, trained, clips, monkeypatch):
    loaded: list[weakref.ref] = []
    load = curve.load_module

    def watched(folder, device):
        gc.collect()
        assert all(module() is None for module in loaded)
        module = load(folder, device)
        loaded.append(weakref.ref(module))
        return module

    monkeypatch.setattr(curve, "load_module", watched)
    make_sounds(model, find_trained(trained[0] / "vocoder"), clips[:1], quiet)
    assert len(loaded) == 3


def test_a_part_of_another_tokenizer_or_mel_is_refused(model, tmp_path):
    save_part(tmp_path / "flow", flow_config(), {"tokenizer_weights": "other"})
    with pytest.raises(
        UserError, match=r"/flow was made for another token layout: tokenizer_weights: 'other'"
    ):
        with_part(model, layout_of(model), "flow", tmp_path / "flow")
    config = vocoder_config()
    save_part(tmp_path / "vocoder", {**config, "mel_spec": {**config["mel_spec"], "fmax_hz": 7000.0}})
    with pytest.raises(UserError, match=r"/vocoder does not fit the export: model: flow mel_spec is"):
        with_part(model, layout_of(model), "vocoder", tmp_path / "vocoder")


class Parrot:
    """A judge that hears nothing but in the recording."""

    name, batch_size = "parrot", 1

    def __init__(self, clips: list[Clip]) -> None:
        self.texts = {clip.wav_N.tobytes(): clip.text for clip in clips}

    def transcribe(self, wavs, rate_hz, languages):
        return [self.texts.get(wav.tobytes(), "") for wav in wavs]


def test_numbers_sounds_and_losses_by_step(model, trained, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("omniaudio.metrics.quality.find_spec", lambda package: None)
    found, measures = find_trained(trained[0] / "vocoder"), ["mel error", "PESQ"]
    record = score_stage(model, found, clips, measures, Parrot(clips), tmp_path, quiet)  # type: ignore[arg-type]
    points = record["points"]
    assert [(point["steps"], point["name"]) for point in points] == list(zip(STEPS, NAMES, strict=True))
    assert record["original"] == {"CER": 0.0}
    assert all(point["values"]["CER"] == 1.0 and point["values"]["mel error"] > 0 for point in points)
    assert points[0]["values"]["mel error"] != points[1]["values"]["mel error"]
    assert points[0]["loss"] > points[1]["loss"] > points[2]["loss"], "as in metrics.jsonl"
    assert [note.partition(":")[0] for note in record["notes"]] == ["mel error", "PESQ"]
    assert "not installed" in record["notes"][1]
    for sample, clip in zip(record["samples"], clips, strict=True):
        assert sample["heard"] == {"original": clip.text, **dict.fromkeys(NAMES, "")}
        assert list(sample["wavs"]) == ["original", *NAMES]
        assert all((tmp_path / "vocoder" / path).stat().st_size > 44 for path in sample["wavs"].values())
        with np.load(tmp_path / "vocoder" / sample["mels"]) as mels:
            assert set(mels) == {"original", *NAMES}
    lines = table(record)
    assert lines[0] == ["steps", "training loss, mel/l1", "mel error", "CER"]
    assert lines[1] == ["recording", "", "", "0.0%"]
    assert [line[0] for line in lines[2:]] == ["50", "100", "200 (end)"]
    assert all(line[3] == "100.0%" and float(line[1]) > 0 < float(line[2]) for line in lines[2:])


def test_a_stage_without_milestones_says_so(trained, tmp_path):
    shutil.copytree(trained[0] / "flow/final", tmp_path / "flow/final")
    (tmp_path / "flow/config.yaml").write_text("max_steps: 7\n")
    found = find_trained(tmp_path / "flow")
    assert list(found.folders) == [7]
    assert curve.notes_of(found, []) == [
        f"{tmp_path}/flow/milestones is empty: no step of milestones= was reached, or the stage is older; only its end"
    ]


def test_loss_at_a_step_is_the_mean_of_the_tenth_before():
    logged = [(10.0, 5.0), (90.0, 4.0), (92.0, 3.0), (100.0, 1.0), (101.0, 0.0)]
    assert curve.loss_at(logged, 100) == 2.0
    assert curve.loss_at(logged, 50) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"stages": []}, r"config curve.stages: \[\] is not a list of stages"),
        ({"stages": "flow"}, "config curve.stages: flow is not a list of stages"),
        ({"num_clips": 0}, "config curve.num_clips: 0 must be a whole number, at least 1"),
        ({"measures": ["beauty"]}, r"config measures: \['beauty'\]"),
    ],
)
def test_a_wrong_curve_is_one_line(wrong, said):
    with pytest.raises(UserError, match=said):
        curve.check_curve({"stages": ["flow"], "num_clips": 1, "measures": ["MCD"], **wrong})
