"""Released checkpoints to parts and back, from stand-ins of small width; what does not fit; wrong words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omniaudio.cli.main import compose, main
from omniaudio.config import build
from omniaudio.convert.baichuan_audio import model_converter, to_released, vocoder_converter
from omniaudio.training.artifacts import load_module, read_fingerprint

SMALL = ["vocoder.base_channels=16", "vocoder.f0_width=8"]
OVERRIDES = 'overrides=["{}","{}"]'.format(*SMALL)


def made(parts: list[str], *words: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    config = compose("train", ["experiment=baichuan_audio/flow", *words])
    return {part: build(config[part], part).eval() for part in parts}


def convert(*words: object) -> None:
    main(["convert", *map(str, words)])


def one_line(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        convert(*words)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    return str(line)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("form", ["weight_g", "parametrizations"])
def test_a_vocoder_comes_and_goes_in_both_forms(tmp_path: Path, form: str) -> None:
    modules = made(["vocoder"], "scale=full", *SMALL)
    theirs = to_released(modules, vocoder_converter(form))
    norm = {"weight_g": "weight_g", "parametrizations": "parametrizations.weight.original0"}[form]
    assert f"f0_predictor.condnet.8.{norm}" in theirs and f"ups.0.{norm}" in theirs
    assert sum(name.endswith(norm) for name in theirs) * 2 == sum(
        "weight_" in n or "original" in n for n in theirs
    )
    torch.save({f"generator.{name}": tensor for name, tensor in theirs.items()}, tmp_path / "hift.pt")
    convert(f"released={tmp_path}/hift.pt", f"parts_dir={tmp_path}/ours", OVERRIDES)
    vocoder, mel_BMT = load_module(tmp_path / "ours" / "vocoder"), torch.randn(1, 80, 6)
    with torch.no_grad():
        assert torch.equal(vocoder(mel_BMT), modules["vocoder"](mel_BMT))
    convert(
        f"released={tmp_path}/back.safetensors", f"parts_dir={tmp_path}/ours", "to=released", f"form={form}"
    )
    assert same(load_file(tmp_path / "back.safetensors"), theirs)


def test_the_model_comes_and_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder of several files in bfloat16, with a vision part; all parts share the tokenizer's layout."""
    parts = ["tokenizer", "lm", "flow"]
    theirs = to_released(made(parts, "scale=tiny"), model_converter())
    theirs = {name: t.bfloat16() if t.is_floating_point() else t for name, t in theirs.items()}
    (tmp_path / "released").mkdir()
    names = sorted(theirs)
    for i in range(2):
        save_file(
            {name: theirs[name] for name in names[i::2]}, tmp_path / "released" / f"model-{i}.safetensors"
        )
    save_file(
        {"model.visual_model.patch.weight": torch.ones(2)}, tmp_path / "released" / "vision.safetensors"
    )
    where = [f"parts_dir={tmp_path}/ours", "checkpoint=model"]
    convert(f"released={tmp_path}/released", "scale=tiny", *where)
    layout = load_module(tmp_path / "ours" / "tokenizer").fingerprint()  # type: ignore[operator]
    for part in parts:
        found = read_fingerprint(tmp_path / "ours" / part)
        assert layout.items() <= found.items() and found["text_vocab_size"] == 300
    convert(f"released={tmp_path}/back.safetensors", "to=released", *where)
    positions = "audio_tokenizer.audio_flow_matching_decoder.prenet.positional_embedding"  # made anew
    wanted = {name: tensor.float() for name, tensor in theirs.items()}
    back = load_file(tmp_path / "back.safetensors")
    assert same({**back, positions: back[positions].bfloat16().float()}, wanted)
    assert f"{len(theirs)} tensors in {tmp_path}/back.safetensors" in capsys.readouterr().out


def test_what_does_not_fit_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = to_released(made(["vocoder"], "scale=full", *SMALL), vocoder_converter("parametrizations"))
    lost = "conv_pre.parametrizations.weight.original1"
    theirs["stray.weight"] = theirs.pop(lost)
    save_file(theirs, tmp_path / "hift.safetensors")
    words = [f"released={tmp_path}/hift.safetensors", f"parts_dir={tmp_path}/ours"]
    line = one_line(capsys, *words, OVERRIDES)
    assert f"{tmp_path}/hift.safetensors: not used: stray.weight; not found: {lost}" in line
    assert "conv_pre.parametrizations.weight.original0: shape (512, 1, 1) there" not in line
    assert "conv_pre.parametrizations.weight.original0: shape (16, 1, 1) there, (512, 1, 1) here" in one_line(
        capsys, *words
    )
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("system=other", "config system: 'other' is not one of baichuan_audio"),
        ("checkpoint=flow", "config checkpoint: 'flow' is not one of model, vocoder"),
        ("form=original", "config form: 'original' is not one of weight_g, parametrizations"),
        ("to=there", "config to: 'there' is not one of ours, released"),
        ("to=released", "config released: 'nowhere.pt'; what is written is a .safetensors file"),
        ("to=ours", "nowhere.pt: no checkpoint there"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str) -> None:
    assert said in one_line(capsys, "released=nowhere.pt", f"parts_dir={tmp_path}", word)
