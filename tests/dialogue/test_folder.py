import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import omniaudio
from omniaudio.dialogue.folder import write_model
from omniaudio.errors import UserError
from omniaudio.frontend.text import TextTokenizer
from omniaudio.training.artifacts import load_module
from tests.dialogue.conftest import SETTINGS


def test_parts_are_those_that_were_trained(exported, parts):
    model = omniaudio.load(exported)
    assert not model.training
    for name, folder in parts.items():
        part = load_module(folder)
        if name == "vocoder":
            mel_BMT = torch.randn(1, 20, 5)
            torch.testing.assert_close(model.vocoder(mel_BMT), part(mel_BMT))
            continue
        trained, loaded = part.state_dict(), model.get_submodule(name).state_dict()
        assert trained.keys() == loaded.keys()
        assert all(torch.equal(trained[key], loaded[key]) for key in trained)


def test_weight_norm_is_folded(exported):
    names = load_file(exported / "model.safetensors").keys()
    assert not [name for name in names if "parametrizations" in name]
    config = yaml.safe_load((exported / "config.yaml").read_text())
    assert config["parts"]["vocoder"]["weight_norm"] is False
    assert config["omniaudio_version"] == omniaudio.__version__


def test_loads_without_training_libraries(exported):
    code = (
        "import sys, omniaudio\n"
        f"omniaudio.load({str(exported)!r})\n"
        "heavy = {'lightning', 'pytorch_lightning', 'deepspeed', 'hydra'}\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import omniaudio\n"
        "print(time.perf_counter() - start); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = ran.stdout.splitlines()
    assert float(seconds) < 0.5
    assert heavy == "False False"


def test_pretrained_sources_are_not_asked_again(trained, parts, tmp_path):
    copy = tmp_path / "tokenizer"
    shutil.copytree(parts["tokenizer"], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["encoder"]["pretrained"] = "somebody/not-there"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    write_model(
        tmp_path / "model", {**parts, "tokenizer": copy}, trained[0] / "text_lm/tokenizer.json", SETTINGS
    )
    assert "not-there" not in (tmp_path / "model/config.yaml").read_text()
    omniaudio.load(tmp_path / "model")


def test_contradicting_fingerprints_are_an_error(trained, parts, tmp_path):
    copy = tmp_path / "lm"
    shutil.copytree(parts["lm"], copy)
    facts = json.loads((copy / "fingerprint.json").read_text())
    (copy / "fingerprint.json").write_text(json.dumps({**facts, "tokenizer_weights": "another"}))
    with pytest.raises(UserError, match="tokenizer_weights: 'another'") as error:
        write_model(
            tmp_path / "model", {**parts, "lm": copy}, trained[0] / "text_lm/tokenizer.json", SETTINGS
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_another_text_tokenizer_is_an_error(parts, tmp_path):
    other = TextTokenizer.train(["entirely different words"], 280, tmp_path / "tokenizer.json")
    assert other.vocab_size <= 280
    with pytest.raises(UserError, match="text_tokenizer"):
        write_model(tmp_path / "model", parts, tmp_path / "tokenizer.json", SETTINGS)


def test_a_full_disk_is_one_line(parts, trained, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("omniaudio.training.artifacts.save_file", refuse)
    with pytest.raises(UserError, match=r"model.safetensors: cannot write \(No space left on device\)"):
        write_model(tmp_path / "model", parts, trained[0] / "text_lm/tokenizer.json", SETTINGS)
    assert not (tmp_path / "model").exists()


def damaged(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_changed_tokenizer_weights_are_noticed(exported, tmp_path):
    folder = damaged(exported, tmp_path)
    state = load_file(folder / "model.safetensors")
    state["tokenizer.bridge.down_proj.weight"] += 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match="tokenizer_weights"):
        omniaudio.load(folder)


def test_missing_tensor_is_named(exported, tmp_path):
    folder = damaged(exported, tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["vocoder.conv_pre.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match="missing vocoder.conv_pre.weight"):
        omniaudio.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.json", "fingerprint.json"])
def test_missing_file_is_one_line(exported, tmp_path, name):
    folder = damaged(exported, tmp_path)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name) as error:
        omniaudio.load(folder)
    assert "\n" not in str(error.value)


def test_cut_weights_are_one_line(exported, tmp_path):
    folder = damaged(exported, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="safetensors") as error:
        omniaudio.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["vocoder", "dialogue"])
@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "omniaudio.files.write_whole", "path": "SENTINEL", "content": "x"},
        {"_target_": "omniaudio.corpus.debian._run", "command": ["touch", "SENTINEL"], "cwd": "."},
    ],
    ids=lambda node: node["_target_"],
)
def test_targets_outside_the_project_are_refused(exported, tmp_path, place, node):
    folder, sentinel = damaged(exported, tmp_path), tmp_path / "ran"
    node = yaml.safe_load(yaml.safe_dump(node).replace("SENTINEL", str(sentinel)))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (config if place == "dialogue" else config["parts"])[place] = node
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="not allowed"):
        omniaudio.load(folder)
    assert not sentinel.exists()


def test_an_export_that_names_a_hub_does_not_reach_it(exported, tmp_path):
    folder = damaged(exported, tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["parts"]["tokenizer"]["encoder"]["pretrained"] = str(tmp_path / "somebody")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    omniaudio.load(folder)
