import pytest

from omniaudio.cli.main import compose
from omniaudio.cli.plan import main, make_batch, make_plain_task, measure
from omniaudio.training.needs import needs_of_step

TINY = ("scale=tiny", "unit_sec=1.0", "unit_tokens=64")


def plan(capsys, stage, *words):
    main(compose("plan", [f"experiment=baichuan_audio/{stage}", *TINY, *words]))
    return capsys.readouterr().out


def test_every_stage_has_a_plan_and_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("text_lm", "tokenizer", "pretrain_stage1", "pretrain_stage2", "sft"):
        told = plan(capsys, stage, "strategy=zero2", "devices=4")
        assert told.startswith(f"{stage}, zero2 on 4 devices, 32-true\n")
        for words in (
            "model states on each device: ",
            "GB with the model states",
            "days at 40% of 312 TFLOP/s",
        ):
            assert words in told
    for stage in ("vocoder", "flow"):
        assert "not measured for this stage" in plan(capsys, stage)
    assert any(
        line.startswith("  tokenizer") and line.endswith("frozen")
        for line in plan(capsys, "flow").splitlines()
    )
    assert not list(tmp_path.iterdir())


def test_what_is_frozen_has_no_gradients(capsys):
    lines = plan(capsys, "tokenizer", "measure=false").splitlines()
    judge, encoder = (
        [line for line in lines if line.startswith(f"  {n}")] for n in ("judge", "tokenizer.encoder")
    )
    assert judge and all(line.endswith("frozen") for line in judge)
    assert len(encoder) == 1 and encoder[0].endswith(" learn")
    assert not any(line.startswith("activations") for line in lines)


def test_full_size_is_counted_without_building_it(capsys):
    words = ["experiment=baichuan_audio/tokenizer", "scale=full", "backbone=qwen2_1_5b", "measure=false"]
    main(compose("plan", [*words, "trainer=gpu", "strategy=zero2", "devices=8"]))
    told = capsys.readouterr().out
    for words in ("635.0 M parameters", "163.7 M parameters", "199.3 M in buffers", "1,543.9 M parameters"):
        assert words in told
    # all in bfloat16, books in float32; an eighth of 2 and of 12 bytes for each of 886 M that learn
    states = 2 * 2429.9e6 + 4 * 205.1e6 + (2 + 12) * 886.0e6 / 8
    assert f"model states on each device: {states / 1e9:.2f} GB" in told


@pytest.mark.parametrize("words", [(), ("encoder.recompute=true",), ("trainer=gpu",)])
def test_the_plan_agrees_with_the_whole_model(words):
    """Three layers of encoder and decoder, two of the judge, measured whole on a longer batch."""
    deep = ["encoder.num_layers=3", "mel_decoder.num_layers=3", "encoder.width=64", "encoder.ffn_width=256"]
    deep += ["quantizer.dim=256"]
    config = compose("plan", ["experiment=baichuan_audio/tokenizer", *TINY, *deep, *words])
    task = make_plain_task(config)
    task.configure_model()
    batch = make_batch(config, 6)
    task.begin_step(batch)

    def loss():
        terms = task.losses(batch, "train")
        return sum(task.loss_weights[name] * t.total / max(1, int(t.count)) for name, t in terms.items())

    whole, found = needs_of_step(task, loss, mixed="trainer=gpu" in words), measure(config)
    assert found["bytes"].of(6) == pytest.approx(whole["bytes"], rel=0.1)
    assert found["operations"].of(6) == pytest.approx(whole["operations"], rel=0.01)
