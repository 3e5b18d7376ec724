import re
import time

import pytest

from omniaudio.cli.main import compose
from omniaudio.cli.plan import main, make_batch, make_plain_task, measure, step_loss, with_gpus
from omniaudio.data.shards import ShardReader
from omniaudio.errors import UserError
from omniaudio.training.needs import needs_of_step

TINY = ("scale=tiny", "unit_sec=1.0", "unit_tokens=64")


def plan(capsys, stage, *words):
    main(compose("plan", [f"experiment=baichuan_audio/{stage}", *TINY, *words]))
    return capsys.readouterr().out


def test_every_stage_has_a_plan_and_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("text_lm", "tokenizer", "pretrain_stage1", "sft", "dpo"):
        told = plan(capsys, stage, "strategy=zero2", "devices=4", "trainer=gpu")
        assert told.startswith(
            f"{stage}, zero2 on 4 GPUs, bf16-mixed\n  assumed: A100 80 GB, 312 TFLOP/s at 40%"
        )
        what = "s of audio" if stage == "tokenizer" else "tokens"
        many = "207,000 hours: " if stage == "tokenizer" else "100 B tokens: "
        for words in (
            "model states on each device: ",
            " of 72.0 GB: fits\n  largest batch of a device that fits: ",
            f" {what} a second on all devices",
            many,
            "data: ",  # is not there, which ends nothing
        ):
            assert words in told
    for stage in ("vocoder", "flow"):
        assert "not measured for this stage" in plan(capsys, stage)
    rounded = plan(capsys, "flow", "strategy=zero2", "devices=2", "trainer.precision=bf16-mixed")
    assert rounded.startswith("flow, zero2 on 2 devices, bf16-mixed\n")
    assert any(
        line.startswith("  tokenizer") and line.endswith("frozen")
        for line in plan(capsys, "flow").splitlines()
    )
    assert not list(tmp_path.iterdir())


def test_gpus_are_nodes_of_eight_or_as_said():
    def shared(*words):
        config = with_gpus(compose("plan", ["experiment=baichuan_audio/text_lm", *TINY, *words]))
        return config["num_nodes"], config["devices"], config["trainer"]["precision"]

    assert shared("devices=2") == (1, 2, "32-true")
    assert shared("gpus=64") == (8, 8, "bf16-mixed")
    assert shared("gpus=4", "trainer=gpu", "trainer.precision=32-true") == (1, 4, "32-true")
    assert shared("gpus=12", "devices=4")[:2] == (3, 4)
    assert shared("gpus=8", "num_nodes=2")[:2] == (2, 4)
    for words in (("gpus=12",), ("gpus=0",), ("gpus=8", "num_nodes=2", "devices=2"), ("gpus=2.5",)):
        with pytest.raises(UserError, match="gpus="):
            shared(*words)


def test_what_does_not_fit_is_told_what_would(capsys):
    """A document has 64 tokens; 10,000 tokens a device are too much for 50 MB."""
    words = (
        "gpus=2",
        "gpu.memory_gb=0.05",
        "schedule.pretrain_stage2.tokens_per_step=20_000",
        "data_too=false",
    )
    told = plan(capsys, "pretrain_stage2", *words, "strategy=ddp")
    assert "of 0.0 GB: does NOT fit" in told
    most = int(told.split("largest batch of a device that fits: ")[1].split(" ")[0].replace(",", ""))
    assert most % 64 == 0 and 0 < most < 10_000
    assert f"  would fit: accumulate={-(-10_000 // most)}\n" in told
    assert "would not fit: strategy=zero2 (" in told, "buckets alone take more"
    assert "would fit: strategy" not in told


def test_a_frozen_backbone_costs_no_products_for_its_gradients():
    """Gradients still pass through it to the audio embeddings."""
    found = {}
    for stage in ("pretrain_stage1", "pretrain_stage2"):
        config = compose("plan", [f"experiment=baichuan_audio/{stage}", *TINY])
        found[stage] = measure(config)["operations"]
    task = make_plain_task(config)
    task.configure_model()
    weights = sum(p.numel() for p in task.lm.backbone.layers.parameters() if p.ndim == 2)
    saved = found["pretrain_stage2"].per_unit - found["pretrain_stage1"].per_unit
    assert saved == pytest.approx(2 * 64 * weights, rel=1e-6)


def test_a_batch_of_a_step_of_several_is_measured():
    found = [
        measure(compose("plan", ["experiment=baichuan_audio/text_lm", *TINY, f"accumulate={n}"]))
        for n in (1, 4)
    ]
    assert found[0] == found[1]


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


@pytest.mark.parametrize(
    ("stage", "learning"), [("pretrain_stage1", "1,526.9"), ("pretrain_stage2", "8,052.5")]
)
@pytest.mark.parametrize(("gpus", "where"), [(8, "8 GPUs"), (64, "64 GPUs (8 nodes x 8)")])
def test_the_language_model_has_its_published_size(capsys, stage, learning, gpus, where):
    """Qwen2.5-7B is 7,615.6 M; eight tables of (book + 1) x 3584; stage 2 leaves text embedding and LM head alone."""
    words = [f"experiment=baichuan_audio/{stage}", "scale=full", "strategy=zero3", f"gpus={gpus}"]
    main(compose("plan", [*words, "measure=false", "data_too=false"]))
    told = capsys.readouterr().out
    assert told.startswith(f"{stage}, zero3 on {where}, bf16-mixed\n")
    for words in ("7,615.6 M parameters", "1,457.1 M parameters", "69.8 M parameters", f"{learning} M learn"):
        assert words in told
    # Gradients in float32: a step is more batches than one.
    states = (2 * 9142.5e6 + (4 + 12) * float(learning.replace(",", "")) * 1e6) / gpus
    assert f"model states on each device: {states / 1e9:.2f} GB" in told


@pytest.mark.slow
def test_full_size_is_measured_within_seconds_and_fits(capsys, monkeypatch):
    """Twice the weights forward, again on the way back, and four times for the gradients: each a product."""
    words = ["experiment=baichuan_audio/pretrain_stage2", "scale=full", "strategy=zero3", "data_too=false"]
    began, found = time.process_time(), []

    def once(config):
        found.extend([] if found else [measure(config)])
        return found[0]

    monkeypatch.setattr("omniaudio.cli.plan.measure", once)
    main(compose("plan", [*words, "gpus=64", "utilisation=0.5", "tokens=50e9", "gpu=h100_80gb"]))
    assert time.process_time() - began < 60
    told = capsys.readouterr().out
    assert "64 devices / accumulate=4 = 15,625: " in told and " of 72.0 GB: fits\n" in told
    assert "H100 80 GB, 989 TFLOP/s at 50%" in told and "50 B tokens: " in told
    operations = float(told.split("operations: ")[1].split(" ")[0])
    layers = 8 * (7615.6e6 - 2 * 152064 * 3584)
    assert layers < operations < 1.25 * layers, "audio head and vocabulary come on top"
    speed = 64 * 989e12 * 0.5 / operations
    told_speed = float(told.split(" tokens a second")[0].split()[-1].replace(",", ""))
    assert told_speed == pytest.approx(speed, rel=0.01)
    main(compose("plan", [*words, "gpus=8"]))  # by the same measure
    told = capsys.readouterr().out
    assert "8 devices / accumulate=32 = 15,625: " in told and " of 72.0 GB: fits\n" in told
    most = float(told.split("largest batch of a device that fits: ")[1].split(" ")[0].replace(",", ""))
    assert most > compose("plan", [*words, "gpus=8"])["backbone"]["max_positions"]


@pytest.mark.parametrize("words", [(), ("encoder.recompute=true",), ("trainer=gpu",)])
def test_the_plan_agrees_with_a_real_step_of_the_whole_tokenizer(words):
    """Three layers of encoder and decoder, two of the judge, with real numbers on a longer batch."""
    deep = ["encoder.num_layers=3", "mel_decoder.num_layers=3", "encoder.width=64", "encoder.ffn_width=256"]
    deep += ["quantizer.dim=256"]
    config = compose("plan", ["experiment=baichuan_audio/tokenizer", *TINY, *deep, *words])
    task = make_plain_task(config)
    task.configure_model()
    whole = needs_of_step(task, step_loss(task, make_batch(config, 20)), mixed="trainer=gpu" in words)
    found = measure(config)
    assert found["bytes"].of(20) == pytest.approx(whole["bytes"], rel=0.1)
    assert found["operations"].of(20) == pytest.approx(whole["operations"], rel=0.01)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("pretrain_stage1", ("backbone.recompute=true",)),
        ("pretrain_stage2", ()),
        ("pretrain_stage2", ("trainer=gpu",)),
    ],
)
def test_the_plan_agrees_with_a_real_step_of_the_whole_language_model(stage, words):
    deep = ["backbone.num_layers=5", "backbone.hidden_size=64", "backbone.ffn_size=192"]
    config = compose("plan", [f"experiment=baichuan_audio/{stage}", *TINY, *deep, *words])
    task = make_plain_task(config)
    task.configure_model()
    whole = needs_of_step(task, step_loss(task, make_batch(config, 24)), mixed="trainer=gpu" in words)
    found = measure(config)
    assert found["bytes"].of(24) == pytest.approx(whole["bytes"], rel=0.1)
    assert found["operations"].of(24) == pytest.approx(whole["operations"], rel=0.01)


@pytest.mark.parametrize("stage", ["text_lm", "pretrain_stage2", "dpo"])
@pytest.mark.parametrize("backbone", ["qwen3_0_6b", "gemma_2b"])
def test_noise_has_the_planned_positions(stage, backbone):
    config = compose("plan", [f"experiment=baichuan_audio/{stage}", f"backbone={backbone}", "unit_tokens=64"])
    batch = make_batch(config, 3)
    assert batch.doc_len_G.tolist() == ([32] * 6 if stage == "dpo" else [64] * 3)
    assert (int(batch.ids_L[0]) == 2) == (backbone == "gemma_2b")


def test_a_folder_is_told_without_a_training(capsys, tiny_data, tmp_path, monkeypatch):
    from omniaudio.cli.main import main

    monkeypatch.chdir(tmp_path)
    main(["plan", f"data_dir={tiny_data}"])
    told = capsys.readouterr().out
    for words in ("train", "dev", "clips", "hours", "with text", " s  "):
        assert words in told, "no column is cut in a file"
    with pytest.raises(SystemExit):
        main(["plan", "data=nothing"])
    assert "data/nothing: nothing is prepared there; say data=NAME" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan"])
    assert "You must specify 'experiment'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_preference_training_keeps_a_copy_and_refuses_zero3(capsys):
    def states(*words):
        told = plan(capsys, "dpo", "measure=false", *words)
        return float(told.partition("model states on each device: ")[2].split()[0])

    words = ["scale=mini", "strategy=zero2", "devices=4", "trainer=gpu"]
    adapters = ["backbone.lora={rank: 4}", 'task.trainable=["lm.backbone.layers.*.lora_*"]']
    assert states(*words) > states(*words, *adapters)
    with pytest.raises(UserError, match="needs whole weights; use zero2 or ddp"):
        plan(capsys, "dpo", "strategy=zero3", "devices=4")
    with pytest.raises(UserError, match="strategy=single is of one device"):
        plan(capsys, "sft", "gpus=64", "strategy=single")


def test_real_samples_are_shown_with_what_is_learned(capsys, tiny_chain, tiny_data):
    from omniaudio.cli.main import main
    from tests.conftest import train_words

    words = ["plan", *train_words("sft", tiny_data, tiny_chain), "measure=false"]
    main([*words, "--show", "3"])
    told = capsys.readouterr().out
    head, *lines = told[told.index("samples: ") :].splitlines()
    page = "".join(lines)
    assert head == "samples: given, «learned», <special>"
    kinds = re.findall(r"\w+[-/]\d+ \[(\w+)\]", page)
    assert len(kinds) == len(set(kinds)) == 3, "one of each kind first"
    learned = re.findall("«(.+?)»", page)
    assert len(learned) >= 3 and all("<eos>" in words or "frames>" in words for words in learned)
    known = (tiny_data / "texts" / "train.txt").read_text().splitlines()
    known += [entry.facts["text"] for entry in ShardReader(tiny_chain / "codes", "train").entries]
    plain = page.replace("«", "").replace("»", "")
    assert any(text in plain for text in known), "they are real ones"
    main([*words, "--show=0"])
    assert "samples: " not in capsys.readouterr().out
