import json
import shutil
from pathlib import Path

import pytest
import yaml

import omniaudio
from omniaudio.cli import export
from omniaudio.errors import UserError


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


def test_the_voices_that_the_training_named_can_be_asked_for(exported, composed, tmp_path):
    stage = tmp_path / "sft"
    shutil.copytree(composed("export")["parts"]["lm"], stage / "final" / "lm")
    (stage / "stamp.json").write_text(json.dumps({"key": "sft"}))
    mixture = {"voices": {"s1": "a calm one", "s2": "a bright one", "s3": "a calm one"}}
    (stage / "config.yaml").write_text(yaml.safe_dump({"train_steps": {"mixture": mixture}}))
    words = [f"model_dir={tmp_path}/model", f"parts.lm={stage}/final/lm"]
    export.main({**composed("export", *words), "exp_dir": str(tmp_path)})
    assert omniaudio.load(tmp_path / "model").settings.voices == ["a bright one", "a calm one"]
    assert omniaudio.load(exported).settings.voices == []
    dpo = tmp_path / "dpo"
    dpo.mkdir()
    later = {"train_steps": {"pairs_dir": "p"}, "init": {"lm": str(stage / "final" / "lm")}}
    (dpo / "config.yaml").write_text(yaml.safe_dump(later))
    assert export.trained_voices(dpo) == ["a bright one", "a calm one"], (
        "a stage of pairs keeps what SFT taught"
    )


def test_graphs_stand_beside_the_weights_and_8_bits_apart(composed, tmp_path):
    from tests.cli.conftest import SMALL

    export.main(
        {
            **composed("export", *SMALL, "programs=true", f"model_dir={tmp_path}/export/model"),
            "exp_dir": str(tmp_path),
        }
    )
    assert {"vocoder.pt2", "flow_step.pt2"} <= {
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
