"""Every experiment composes, builds tiny and takes two steps; the same seed gives the same numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omniaudio.acoustic.estimator import Chunks
from omniaudio.acoustic.flow_stream import FlowStream
from omniaudio.cli.main import CONF_DIR, compose
from omniaudio.cli.train import make_task
from omniaudio.config import build
from omniaudio.quantizers.decoder_stream import DecoderStream
from omniaudio.training.artifacts import load_module
from omniaudio.training.freeze import apply_trainable
from tests.conftest import STAGES, run_stage, write_pairs

EXPERIMENTS = sorted(
    str(p.relative_to(CONF_DIR / "experiment").with_suffix("")) for p in CONF_DIR.glob("experiment/*/*.yaml")
)
SCALES = sorted(p.stem for p in CONF_DIR.glob("scale/*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_at_every_scale(experiment, scale):
    config = compose("train", [f"experiment={experiment}", f"scale={scale}"])
    assert config["stage"] == experiment.split("/")[1]
    assert config["scale"] == scale
    assert config["max_steps"] == config["schedule"][config["stage"]]["max_steps"]
    if scale == "tiny":
        assert config["max_steps"] <= 2, "scale=tiny must win over the experiment"


@pytest.mark.parametrize(
    ("vocoder", "parameters"),
    [
        ("hifigan_mini", 437_762), ("hifigan_v1", 13_811_202), ("hifigan_v2", 920_706), ("hifigan_v3", 1_603_586),
        ("hift", 20_821_295), ("hift_mini", 1_416_047), ("istft", 13_919_618), ("istft_mini", 3_815_042),
    ],
)  # fmt: skip
def test_every_vocoder_may_be_chosen_at_every_scale(vocoder, parameters):
    for scale in ("mini", "full"):
        config = compose(
            "train", ["experiment=baichuan_audio/vocoder", f"scale={scale}", f"vocoder={vocoder}"]
        )
        with torch.device("meta"):
            made = build(config["model"]["vocoder"], "model.vocoder")
        assert sum(p.numel() for p in made.parameters()) == parameters


@pytest.mark.parametrize(
    ("backbone", "rows", "parameters"),
    [
        ("qwen2", 152_064, 7_615_616_512), ("qwen2_1_5b", 151_936, 1_543_714_304),
        ("qwen3_0_6b", 151_936, 596_049_920), ("qwen3_8b", 151_936, 8_190_735_360),
        ("llama3_2_1b", 128_256, 1_235_814_400), ("llama3_1_8b", 128_256, 8_030_261_248),
        ("gemma_2b", 256_000, 2_506_172_416), ("gemma2_2b", 256_000, 2_614_341_888),
        ("gemma3_1b", 262_144, 999_885_952),
        ("mistral_7b", 32_768, 7_248_023_552), ("olmo2_1b", 100_352, 1_484_916_736),
    ],
)  # fmt: skip
def test_every_backbone_has_its_published_size(backbone, rows, parameters):
    """Beside the rows that the special tokens of audio add to a vocabulary that has no room for them."""
    config = compose("train", ["experiment=baichuan_audio/pretrain_stage2", f"backbone={backbone}"])
    with torch.device("meta"):
        lm = build(config["model"]["lm"], "lm")
    added = 0 if lm.backbone.vocab_size == rows else lm.backbone.vocab_size - rows
    tables = 1 if config["backbone"]["tie_embeddings"] else 2
    count = sum(p.numel() for p in lm.backbone.parameters())
    assert 0 <= added <= 128 and count - tables * added * lm.backbone.hidden_size == parameters
    assert lm.token_space.eos < rows, "the end that the published model knows"
    begins = {
        "gemma": 2,
        "llama": 128_000,
        "mistral": 1,
        "olmo": None,
        "qwen": None,
    }  # with what its own texts began
    assert lm.token_space.bos == begins[backbone.split("_")[0].rstrip("23")]


def test_every_backbone_is_counted():
    marks = test_every_backbone_has_its_published_size.pytestmark
    counted = {case[0] for case in marks[0].args[1]}
    assert counted == {path.stem for path in CONF_DIR.glob("backbone/*.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("qwen3_0_6b", ["backbone.head_dim=16"]),
        ("mistral_7b", ["backbone.head_dim=16"]),
        ("gemma3_1b", ["backbone.head_dim=16", "backbone.num_layers=6", "backbone.sliding_window=8"]),
    ],
)
def test_another_backbone_learns_in_stage_2(tiny_chain, tiny_data, tmp_path, backbone, words):
    for name in ("tokenizer", "codes"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    for stage, steps in (("text_lm", 1), ("pretrain_stage1", 1), ("pretrain_stage2", 3)):
        run_stage(stage, tiny_data, tmp_path, f"backbone={backbone}", *words, f"max_steps={steps}")
    lines = map(json.loads, (tmp_path / "pretrain_stage2/metrics.jsonl").read_text().splitlines())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    first, second = (
        load_file(tmp_path / f"{stage}/final/lm/model.safetensors")
        for stage in ("pretrain_stage1", "pretrain_stage2")
    )
    moved = {name.split(".")[-2] for name in first if not torch.equal(first[name], second[name])}
    norms = set() if backbone == "mistral_7b" else {"q_norm", "k_norm"}
    assert norms | {"q_proj", "up_proj"} <= moved and "embed_tokens" not in moved


@pytest.mark.parametrize("stage", ["pretrain_stage1", "pretrain_stage2", "sft"])
@pytest.mark.parametrize("scale", SCALES)
def test_the_patterns_of_the_llm_stages_fit_their_models(scale, stage):
    """Also where text embedding and LM head are one weight (whisper_base)."""
    config = compose("train", [f"experiment=baichuan_audio/{stage}", f"scale={scale}"])
    with torch.device("meta"):
        model = nn.ModuleDict({"lm": build(config["model"]["lm"], "lm")})
    apply_trainable(model, config["task"]["trainable"])
    heads = [p for name, p in model.named_parameters(remove_duplicate=False) if "lm_head" in name]
    assert heads and all(p.requires_grad == (stage == "sft") for p in heads)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("stage", ["pretrain_stage1", "pretrain_stage2", "sft", "ablation_single_stage"])
def test_weights_of_books_and_learning_rates_are_one_override_away(stage):
    words = [f"experiment=baichuan_audio/{stage}", "scale=tiny"]
    for given, book_weights, factors in (
        ([], None, {}),
        (
            ["task.book_weights=[4,2,1,1,1,1,1,1]", "task.lr_factors={lm.audio_head.*: 0.1}"],
            (4, 2, 1, 1, 1, 1, 1, 1),
            {"lm.audio_head.*": 0.1},
        ),
    ):
        task = make_task(compose("train", [*words, *given]))
        assert (task.book_weights, task.lr_factors) == (book_weights, factors)


def test_parts_of_the_llm_learn_at_rates_of_their_own_and_have_norms_of_their_own(
    tiny_chain: Path, tiny_data: Path, tmp_path: Path
):
    for name in ("text_lm", "tokenizer", "codes", "pretrain_stage1"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    words = ["task.lr_factors={lm.backbone.*: 0.1}", 'task.trainable=["*"]', "max_steps=1"]
    run_stage("pretrain_stage2", tiny_data, tmp_path, *words)
    before, after = (
        load_file(folder / "final/lm/model.safetensors")
        for folder in (tiny_chain / "pretrain_stage1", tmp_path / "pretrain_stage2")
    )
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    fast = {rate for name, rate in moved.items() if not name.startswith("backbone.")}
    slow = {rate for name, rate in moved.items() if name.startswith("backbone.")}
    assert max(slow) == pytest.approx(0.1 * max(fast), rel=0.05)  # Adam's first step is the rate itself
    lines = map(json.loads, (tmp_path / "pretrain_stage2/metrics.jsonl").read_text().splitlines())
    logged = {name: value for line in lines for name, value in line.items() if "grad_norm" in name}
    whole = logged.pop("train/grad_norm")
    parts = ("backbone", "backbone.embed_tokens", "backbone.lm_head", "audio_embed", "audio_head")
    assert logged.keys() == {f"train/grad_norm/part/lm.{part}" for part in parts}
    assert sum(norm**2 for norm in logged.values()) == pytest.approx(whole**2, rel=1e-3)


def test_preferences_too_have_learning_rates_by_pattern():
    words = ["experiment=baichuan_audio/dpo", "scale=tiny", "task.lr_factors={lm.audio_head.*: 0.1}"]
    assert make_task(compose("train", words)).lr_factors == {"lm.audio_head.*": 0.1}


def test_the_chain_holds_every_experiment():
    others = {"ablation_single_stage", "dpo", "vocoder_finetune"}
    assert {e.split("/")[1] for e in EXPERIMENTS} == set(STAGES) - {"codes"} | others


@pytest.mark.parametrize("scale", SCALES)
def test_a_single_stage_has_the_steps_of_both_and_trains_what_the_second_does(scale):
    single, first, second = (
        compose("train", [f"experiment=baichuan_audio/{stage}", f"scale={scale}"])
        for stage in ("ablation_single_stage", "pretrain_stage1", "pretrain_stage2")
    )
    if scale != "tiny":
        assert single["max_steps"] == first["max_steps"] + second["max_steps"]
    assert single["task"]["trainable"] == second["task"]["trainable"]
    assert (
        single["init"] == first["init"]
        and single["train_steps"]["mixture"] == second["train_steps"]["mixture"]
    )
    assert single["train_steps"]["tokens_per_step"] == second["train_steps"]["tokens_per_step"]
    assert single["optim"]["lr"] == second["optim"]["lr"]


def test_a_single_stage_takes_two_steps(tiny_chain: Path, tiny_data: Path, tmp_path: Path):
    for name in ("text_lm", "tokenizer", "codes"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    run_stage("ablation_single_stage", tiny_data, tmp_path)
    folder = tmp_path / "ablation_single_stage"
    before = load_file(tiny_chain / "text_lm/final/backbone/model.safetensors")
    after = load_file(folder / "final/lm/model.safetensors")
    moved = {n for n, old in before.items() if not torch.equal(old, after[f"backbone.{n}"])}
    assert moved and not any(name.startswith(("embed_tokens", "lm_head")) for name in moved)
    assert (folder / "stamp.json").exists()


@pytest.mark.parametrize(
    "words", [[], ["backbone.lora={rank: 2}", 'task.trainable=["lm.backbone.layers.*.lora_*"]']]
)
def test_preferences_are_learned_after_sft(
    tiny_chain: Path, tiny_data: Path, tmp_path: Path, words: list[str]
):
    for name in ("text_lm", "tokenizer", "sft"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    write_pairs(tiny_chain, tmp_path / "pairs")
    steps = ["max_steps=4", "num_val_steps=2", "val_every_steps=4", "lm.deep_frame_share=0.5"]
    run_stage("dpo", tiny_data, tmp_path, *steps, *words)
    told: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (tmp_path / "dpo/metrics.jsonl").read_text().splitlines()):
        told.setdefault(line["step"], {}).update(line)
    train = [told[step] for step in range(1, 5)]
    assert train[0]["train/dpo/pairs"] == pytest.approx(math.log(2), abs=1e-6)
    assert train[0]["train/margin"] == train[0]["train/drift"] == 0
    assert train[-1]["train/margin"] > 0 and train[-1]["train/dpo/pairs"] < math.log(2)
    assert told[4]["val/log_prob/chosen"] < 0 <= told[4]["val/accuracy"] <= 1 and "val/ce/chosen" in told[4]
    before = load_file(tiny_chain / "sft/final/lm/model.safetensors")
    after = load_file(tmp_path / "dpo/final/lm/model.safetensors")
    plain = {
        name.replace(".base_layer.", "."): tensor for name, tensor in after.items() if ".lora_" not in name
    }
    assert plain.keys() == before.keys() and (len(plain) < len(after)) is bool(words)
    assert all(plain[name].equal(before[name]) for name in before) is bool(words)


@pytest.mark.slow
def test_one_weight_for_text_embedding_and_lm_head_goes_through_both_stages(tiny_chain, tiny_data, tmp_path):
    for name in ("tokenizer", "codes"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    for stage in ("text_lm", "pretrain_stage1", "pretrain_stage2", "sft"):
        run_stage(stage, tiny_data, tmp_path, "backbone.tie_embeddings=true")
    text_lm = load_module(tmp_path / "text_lm/final/backbone")
    second, sft = (load_module(tmp_path / f"{stage}/final/lm") for stage in ("pretrain_stage2", "sft"))
    for lm in (second, sft):
        assert lm.backbone.lm_head.weight is lm.backbone.embed_tokens.weight
    assert torch.equal(second.backbone.embed_tokens.weight, text_lm.embed_tokens.weight), (
        "frozen in both stages"
    )
    assert not torch.equal(sft.backbone.embed_tokens.weight, text_lm.embed_tokens.weight)


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "codes"])
def test_every_experiment_takes_two_steps(tiny_chain: Path, stage: str):
    lines = [json.loads(line) for line in (tiny_chain / stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert any("val/loss" in line for line in lines)
    assert (tiny_chain / stage / "stamp.json").exists()
    assert list((tiny_chain / stage / "final").glob("*/model.safetensors"))


@pytest.mark.parametrize(
    ("stage", "frozen", "trained"),
    [
        ("tokenizer", ["judge."], ["tokenizer.", "align."]),
        ("pretrain_stage1", ["lm.backbone."], ["lm.audio_embed.", "lm.audio_head."]),
        (
            "pretrain_stage2",
            ["lm.backbone.embed_tokens.", "lm.backbone.lm_head."],
            ["lm.audio_embed.", "lm.audio_head.", "lm.backbone.layers."],
        ),
        ("flow", ["tokenizer."], ["flow."]),
    ],
)
def test_what_is_frozen_did_not_move_and_the_rest_did(tiny_chain, stage, frozen, trained):
    record = json.loads((tiny_chain / stage / "freeze.json").read_text())
    assert all(before == after for before, after in record["frozen"].values())
    for prefix in frozen:
        assert any(name.startswith(prefix) for name in record["frozen"])
    for prefix in trained:
        assert any(name.startswith(prefix) for name in record["trained"])
    assert not set(record["trained"]) & set(record["frozen"])


def test_stage_2_moves_the_backbone_and_not_its_frozen_parts(tiny_chain):
    before = load_file(tiny_chain / "pretrain_stage1" / "final" / "lm" / "model.safetensors")
    after = load_file(tiny_chain / "pretrain_stage2" / "final" / "lm" / "model.safetensors")
    moved = {name for name in before if not before[name].equal(after[name])}
    assert "backbone.embed_tokens.weight" not in moved and "backbone.lm_head.weight" not in moved
    assert any(name.startswith("backbone.layers.") for name in moved)


@pytest.mark.parametrize("stage", ["tokenizer", "pretrain_stage2"])
def test_the_same_seed_gives_the_same_numbers_and_another_does_not(tiny_chain, tiny_data, tmp_path, stage):
    for name, words in (("same", ()), ("other", ("seed=7",))):
        exp_dir = tmp_path / name
        exp_dir.mkdir()
        for done in STAGES[: STAGES.index(stage)]:
            (exp_dir / done).symlink_to(tiny_chain / done)
        run_stage(stage, tiny_data, exp_dir, *words)
    expected = (tiny_chain / stage / "metrics.jsonl").read_text()
    assert (tmp_path / "same" / stage / "metrics.jsonl").read_text() == expected
    assert (tmp_path / "other" / stage / "metrics.jsonl").read_text() != expected


def test_attention_is_the_machines_choice_not_the_models(tiny_chain, tiny_data, capsys):
    """Another way of attention is no other training, and what was trained does not insist on one."""
    for name in ("text_lm/final/backbone", "pretrain_stage2/final/lm"):
        assert "attention:" not in (tiny_chain / name / "config.yaml").read_text()
    run_stage("text_lm", tiny_data, tiny_chain, "backbone.attention=documents")
    assert "done before" in capsys.readouterr().out


def test_a_finished_stage_is_skipped(tiny_chain, tiny_data, capsys):
    stamp = (tiny_chain / "sft" / "stamp.json").read_text()
    run_stage("sft", tiny_data, tiny_chain)
    assert "skipped" in capsys.readouterr().out
    assert (tiny_chain / "sft" / "stamp.json").read_text() == stamp


@pytest.mark.parametrize("scale", ["mini", "full"])
def test_the_parts_fit_each_other(scale):
    import torch

    config = compose("train", ["experiment=baichuan_audio/flow", f"scale={scale}"])
    with torch.device("meta"):
        tokenizer, lm = build(config["tokenizer"]), build(config["lm"])
        flow, vocoder = build(config["flow"]), build(config["vocoder"])
    assert tokenizer.code_rate_hz == 12.5 and len(tokenizer.codebook_sizes) == 8
    assert lm.token_space.codebook_sizes == tokenizer.codebook_sizes
    assert flow.mel_spec == vocoder.mel_spec


@pytest.mark.parametrize(
    ("quantizer", "words", "name"),
    [
        ("rvq", [], "rvq.ResidualVQ"),
        ("rvq", ["quantizer.replacement=token"], "replacement: token"),
        ("rvq", ["quantizer.restart_after=null", "quantizer.shrink=0"], "restart_after: null"),
        ("projected", [], "projected.ProjectedResidualVQ"),
        ("vector_quantize_pytorch", [], "VectorQuantizePytorch"),
        ("fsq", ["quantizer.levels=[4,3]", "books.codebook_sizes=[12,12,12]"], "FiniteScalar"),
        ("continuous", [], "Continuous"),
    ],
)
def test_every_quantizer_is_one_override_away(tiny_chain, tiny_data, tmp_path, quantizer, words, name):
    (tmp_path / "text_lm").symlink_to(tiny_chain / "text_lm")
    run_stage("tokenizer", tiny_data, tmp_path, f"quantizer={quantizer}", *words)
    assert name in (tmp_path / "tokenizer" / "config.yaml").read_text()
    assert (tmp_path / "tokenizer" / "final" / "align" / "model.safetensors").exists()
    tokenizer = load_module(tmp_path / "tokenizer" / "final" / "tokenizer")
    mel = tokenizer.autoencode(torch.randn(1, 16000) * 0.1, torch.tensor([16000]))
    assert mel.refined_BMT.isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
def test_the_flow_may_have_a_transformer_of_the_unets_size(scale):
    words = ["experiment=baichuan_audio/flow", f"scale={scale}"]
    with torch.device("meta"):
        unet, dit = (
            build(compose("train", [*words, *more])["flow"]).estimator for more in ([], ["estimator=dit"])
        )
    assert type(dit).__name__ == "ConditionalDiT" and dit.chunk_frames == unet.chunk_frames == 100
    if scale != "tiny":
        assert count(dit) == pytest.approx(count(unet), rel=0.2)


def test_a_flow_with_a_transformer_takes_two_steps(tiny_chain, tiny_data, tmp_path):
    for name in ("tokenizer", "codes"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    run_stage("flow", tiny_data, tmp_path, "estimator=dit")
    flow = load_module(tmp_path / "flow/final/flow")
    assert type(flow.estimator).__name__ == "ConditionalDiT"
    assert flow.estimator.blocks[0].modulation.weight.any(), "it began at zero"


@torch.no_grad()
@pytest.mark.parametrize("slots", [[], ["timbre.speaker_width=160", "timbre.prompt=true"]])
def test_a_transformer_with_limits_streams_what_it_says_offline(slots):
    words = ["experiment=baichuan_audio/flow", "scale=tiny", "estimator=dit", "flow=streaming", *slots]
    torch.manual_seed(0)
    flow = build(compose("train", words)["flow"]).eval()
    assert type(flow.estimator).__name__ == "ConditionalDiT" and flow.estimator.timbre.width == 80 * (
        1 + len(slots)
    )
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    hidden_TD, draws = torch.randn(130, 16), [torch.Generator().manual_seed(0) for _ in range(2)]
    stream = FlowStream(flow, draws[0], num_steps=2)
    pieces = [stream.push(hidden_TD[:15]), *map(stream.push, hidden_TD[15:].split(24))]
    given = {"num_steps": 2, "generator": draws[1], "chunks": Chunks(15, 24)}
    offline, _ = flow.decode(hidden_TD[None], torch.tensor([130]), **given)
    torch.testing.assert_close(torch.cat(pieces, 1), offline[0], atol=1e-3, rtol=1e-3)


def test_decoder_and_flow_that_stream_are_one_override_each(tiny_chain, tiny_data, tmp_path):
    for name in ("text_lm", "codes"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    run_stage("tokenizer", tiny_data, tmp_path, "mel_decoder=streaming")
    tokenizer = load_module(tmp_path / "tokenizer" / "final" / "tokenizer")
    hidden_TD = DecoderStream(tokenizer).push(torch.zeros(3, 8, dtype=torch.int64))
    (tmp_path / "tokenizer").rename(tmp_path / "streaming_tokenizer")
    (tmp_path / "tokenizer").symlink_to(tiny_chain / "tokenizer")
    run_stage("flow", tiny_data, tmp_path, "flow=streaming")
    flow = load_module(tmp_path / "flow" / "final" / "flow")
    assert flow.train_chunks == (12, 24, 48, 100, 0)
    mel_MT = FlowStream(flow, torch.Generator().manual_seed(0), num_steps=1).push(hidden_TD)
    assert mel_MT.shape == (80, 11) and mel_MT.isfinite().all()


def count(module: torch.nn.Module) -> int:
    """Parameters, and the codes of the books."""
    books = sum(
        buffer.numel() for name, buffer in module.named_buffers() if "books" in name and "unused" not in name
    )
    return sum(p.numel() for p in module.parameters()) + books


def test_the_full_size_has_the_papers_parameters():
    """1.196 B for tokenizer, prenet and U-Net; with a judge of 1.5 B, and a checkpoint that nobody has to fetch."""
    words = ["experiment=baichuan_audio/tokenizer", "scale=full", "backbone=qwen2_1_5b"]
    config = compose("train", [*words, "encoder.pretrained=openai/whisper-large-v3"])
    flow = compose("train", ["experiment=baichuan_audio/flow", "scale=full"])["flow"]
    with torch.device("meta"):
        tokenizer, judge, decoder = build(config["tokenizer"]), build(config["backbone"]), build(flow)
    parts = {
        name: count(tokenizer.get_submodule(name)) for name in ("encoder", "bridge", "quantizer", "decoder")
    }
    assert parts["encoder"] == 635_048_960
    assert parts["bridge"] == 85_208_320
    assert parts["quantizer"] == 2 * 99_614_720 + 19_456, "codes, their averages, their counts"
    assert parts["decoder"] == 163_747_392
    total = sum(parts.values()) + count(decoder)
    assert abs(total / 1e9 - 1.196) < 0.001
    assert 1.5e9 < sum(p.numel() for p in judge.parameters()) < 1.6e9
    assert tokenizer.encoder.recompute and tokenizer.decoder.recompute
