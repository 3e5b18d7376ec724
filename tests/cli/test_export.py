import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import omniaudio
from omniaudio.cli import export
from omniaudio.errors import UserError
from omniaudio.types import Codes


def test_export_is_one_folder_that_loads(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {"model.safetensors", "config.yaml", "tokenizer.json", "fingerprint.json", "README.md"}
    assert omniaudio.load(exported).settings.max_frames == 6


def test_card_says_what_data_sizes_and_how_to_load(exported):
    card = (exported / "README.md").read_text()
    assert "CC0-1.0" in card and "omniaudio.load(" in card and "16 + 8 + 8 codes" in card


def test_second_run_is_skipped(exported, composed, capsys):
    before = (exported / "model.safetensors").stat().st_mtime_ns
    from tests.cli.conftest import SMALL

    export.main(composed("export", *SMALL))
    assert "skipped" in capsys.readouterr().out
    assert (exported / "model.safetensors").stat().st_mtime_ns == before


def test_missing_part_is_one_line(composed, tmp_path):
    config = composed("export", f"parts.vocoder={tmp_path}/nothing/final/vocoder", f"exp_dir={tmp_path}")
    config["parts"] = {**config["parts"], "tokenizer": config["parts"]["vocoder"]}
    with pytest.raises(UserError, match="run the stage that trains it first") as error:
        export.main(config)
    assert "\n" not in str(error.value)
    assert not Path(config["model_dir"]).exists()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["onnx=true", "dialogue.flow_solver=midpoint"],
            "flow_solver: 'midpoint'; a graph is one step of euler",
        ),
        (["dialogue.flow_guidance=null"], "dialogue.flow_guidance None: a finite number, at least 0"),
        (["dialogue.flow_warp=none"], "dialogue.flow_warp 'none': can be"),
    ],
)
def test_what_no_export_can_be_is_refused_before_an_older_one_is_set_aside(
    exported, composed, tmp_path, words, fault
):
    shutil.copytree(exported.parent, tmp_path / "export")
    config = composed("export", *words)
    config = {**config, "exp_dir": str(tmp_path), "model_dir": f"{tmp_path}/export/model"}
    with pytest.raises(UserError, match=fault):
        export.main(config)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert omniaudio.load(tmp_path / "export" / "model")


def test_the_voices_that_the_training_named_can_be_asked_for(exported, composed, tmp_path):
    stage = tmp_path / "sft"
    shutil.copytree(composed("export")["parts"]["lm"], stage / "final" / "lm")
    (stage / "stamp.json").write_text(json.dumps({"key": "sft"}))
    named = {"a bright one": ["s2"], "a calm one": ["s1", "s3"]}
    mixture = {"voices": {"s1": "a calm one", "s2": "a bright one", "s3": "a calm one"}}
    (stage / "config.yaml").write_text(yaml.safe_dump({"train_steps": {"mixture": mixture}}))
    words = [f"model_dir={tmp_path}/model", f"parts.lm={stage}/final/lm"]
    export.main({**composed("export", *words), "exp_dir": str(tmp_path)})
    assert omniaudio.load(tmp_path / "model").settings.voices == named
    assert omniaudio.load(exported).settings.voices == {}
    by_number = {"train_steps": {"mixture": {"voices": {1089: "a calm one"}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(by_number))
    assert export.trained_voices(tmp_path) == {"a calm one": ["1089"]}
    dpo = tmp_path / "dpo"
    dpo.mkdir()
    later = {"train_steps": {"pairs_dir": "p"}, "init": {"lm": str(stage / "final" / "lm")}}
    (dpo / "config.yaml").write_text(yaml.safe_dump(later))
    assert export.trained_voices(dpo) == named, "a stage of pairs keeps what SFT taught"


def test_graphs_stand_beside_the_weights_and_8_bits_apart(composed, tmp_path, capsys):
    from tests.cli.conftest import SMALL

    words = ["programs=true", f"model_dir={tmp_path}/export/model", "dialogue.mel_path=refined"]
    export.main({**composed("export", *SMALL, *words), "exp_dir": str(tmp_path)})
    assert (
        "speaks through its refined mel (dialogue.mel_path=refined), which has no" in capsys.readouterr().out
    )
    assert {"vocoder.pt2", "flow_step.pt2", "flow_prenet.pt2"} <= {
        path.name for path in (tmp_path / "export" / "model").iterdir()
    }
    assert omniaudio.load(tmp_path / "export" / "model").settings.max_frames == 6
    with pytest.raises(UserError, match=r"config int8: true; graphs \(onnx, programs\) are made of"):
        export.main(composed("export", "int8=true", "onnx=true"))
    config = composed("export", *SMALL, "int8=true", f"model_dir={tmp_path}/int8")
    export.main({**config, "exp_dir": str(tmp_path)})
    assert (tmp_path / "export" / "model" / "vocoder.pt2").is_file(), "one export sets no other aside"
    assert "int8: true" in (tmp_path / "int8" / "config.yaml").read_text()
    assert omniaudio.load(tmp_path / "int8").sample_rate_hz == 24_000


def stirred(part: Path, folder: Path, scale: float) -> Path:
    """A copy of a part with random numbers in its weights, but the biases: the first ones would say nothing."""
    shutil.copytree(part, folder)
    weights = load_file(part / "model.safetensors")
    rng = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if not name.endswith("bias"):
            weight += scale * torch.randn(weight.shape, generator=rng)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_the_onnx_files_speak_as_the_model_does(composed, tmp_path):
    """How they are used: states of the tokenizer's decoder to samples, with numpy alone between the graphs."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="the extra [onnx] is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    from tests.cli.conftest import SMALL

    folder = tmp_path / "export" / "model"
    trained, scales = composed("export")["parts"], {"flow": 0.1, "vocoder": 1.0}
    parts = {name: stirred(Path(trained[name]), tmp_path / name, scale) for name, scale in scales.items()}
    words = [*SMALL, "onnx=true", f"model_dir={folder}", *(f"parts.{name}={parts[name]}" for name in parts)]
    export.main({**composed("export", *words), "exp_dir": str(tmp_path)})
    model = omniaudio.load(folder)
    codes = Codes(codes_BSK=torch.randint(8, (1, 12, 3)), num_frames_B=torch.tensor([12]))
    hidden = model.tokenizer.decode(codes).hidden_BTD.detach().numpy()
    noise = model.flow.draw_noise(hidden.shape[1], torch.Generator().manual_seed(0), model.device).numpy()

    facts = json.loads((folder / "onnx.json").read_text())
    prenet, step, vocoder = (runtime.InferenceSession(folder / f"{name}.onnx") for name in facts)
    loop = facts["flow_step"]
    times, guidance = np.array(loop["times"], np.float32), np.array(loop["guidance"], np.float32)
    (mu,) = prenet.run(["mu"], {"hidden": hidden})
    x = noise
    for now, then in pairwise(times):
        (velocity,) = step.run(["velocity"], {"x": x, "mu": mu, "time": np.array(now), "guidance": guidance})
        x = x + (then - now) * velocity
    (wav,) = vocoder.run(["wav"], {"mel": x * loop["mel_std"] + loop["mel_mean"]})

    want_N = model.decode(codes, path="flow")
    assert want_N.std() > 0.01 and np.abs(x - noise).max() > 0.1
    np.testing.assert_allclose(wav[0], want_N, atol=1e-3)
    assert [facts[name]["inputs"] for name in facts] == [["hidden"], ["x", "mu", "time", "guidance"], ["mel"]]
    assert facts["vocoder"]["sample_rate_hz"] == model.sample_rate_hz
    assert facts["flow_prenet"] == {"hidden_rate_hz": 50, "mel_rate_hz": 50, "inputs": ["hidden"]}
