"""A finished experiment of real modules at tiny size: every folder and file that a recipe leaves before ``export``."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omniaudio.config import build
from omniaudio.data.shards import ShardWriter, dump_npy
from omniaudio.fingerprint import merge_fingerprints
from omniaudio.frontend.audio import encode_audio
from omniaudio.frontend.text import TextTokenizer
from omniaudio.training.artifacts import save_module

MEL = "omniaudio.frontend.mel.MelSpec"
BOOKS = [16, 8, 8]
SENTENCES = [
    ("en", "please hold the line while we connect you"),
    ("en", "the number you have dialed is not in service"),
    ("it", "la persona chiamata non risponde al telefono"),
    ("it", "premere uno per ascoltare i messaggi nuovi"),
    ("en", "goodbye"),
    ("it", "grazie mille"),
]
STAGES = {
    "text_lm": ["ce/text"],
    "tokenizer": ["mel/l1", "vq/commit", "ce/text"],
    "pretrain_stage1": ["ce/text", "ce/audio"],
    "pretrain_stage2": ["ce/text", "ce/audio"],
    "sft": ["ce/text", "ce/audio"],
    "flow": ["flow/mse", "flow/prior"],
    "vocoder": ["mel/l1", "adv/gen"],
}
Config = dict[str, Any]


def speech(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Harmonics with a moving pitch, in noise."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = np.cumsum(110 + 10 * seed + 30 * np.sin(2 * np.pi * 1.5 * time)) / rate
    voice = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 20))
    noise = np.random.default_rng(seed).normal(0, 0.2, len(time))
    return (0.1 * (1 + np.sin(2 * np.pi * 3 * time)) * (voice + noise)).astype(np.float32)


def mel(rate: int, n_fft: int, hop: int, num_mels: int, log: str, center: bool) -> Config:
    sizes = {"sample_rate_hz": rate, "n_fft": n_fft, "hop": hop, "win": n_fft, "num_mels": num_mels}
    return {"_target_": MEL, **sizes, "fmin_hz": 0.0, "fmax_hz": 8000.0, "log": log, "center": center}


VOCODER_MEL = mel(24000, 1920, 480, 20, "ln", False)


def tokenizer_config() -> Config:
    width = 16
    return {
        "_target_": "omniaudio.quantizers.speech_tokenizer.SpeechTokenizer",
        "mel_spec": mel(16000, 400, 160, 24, "whisper", True),
        "decoder_mel_spec": mel(16000, 1024, 256, 20, "ln", True),
        "encoder": {
            "_target_": "omniaudio.encoders.whisper.WhisperEncoder",
            "num_mels": 24, "width": width, "num_layers": 1, "num_heads": 2, "ffn_width": 16,
            "pretrained": None,
        },
        "bridge": {"_target_": "omniaudio.quantizers.bridge.ConvBridge", "width": width},
        "quantizer": {"_target_": "omniaudio.quantizers.rvq.ResidualVQ", "dim": 4 * width, "codebook_sizes": BOOKS},
        "decoder": {
            "_target_": "omniaudio.quantizers.mel_decoder.MelDecoder",
            "width": width, "num_mels": 20, "num_layers": 1, "num_heads": 2, "ffn_width": 16,
            "refine_width": 8, "refine_layers": 1, "mel_mean": -6.0,
        },
    }  # fmt: skip


def backbone_config(vocab_size: int) -> Config:
    return {
        "_target_": "omniaudio.lm.backbone.CausalBackbone",
        "vocab_size": vocab_size, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1,
        "ffn_size": 32, "tie_embeddings": True, "max_positions": 512, "pretrained": None,
    }  # fmt: skip


def lm_config(text_vocab_size: int) -> Config:
    space = {"_target_": "omniaudio.sequence.vocab.TokenSpace", "text_vocab_size": text_vocab_size,
             "codebook_sizes": BOOKS}  # fmt: skip
    return {
        "_target_": "omniaudio.lm.audio_lm.AudioLM",
        "backbone": backbone_config(build(space).vocab_size),
        "audio_head": {
            "_target_": "omniaudio.lm.audio_head.AudioHead",
            "hidden_size": 32, "codebook_sizes": BOOKS, "num_layers": 1, "head_dim": 16,
        },
        "token_space": space,
    }  # fmt: skip


def flow_config() -> Config:
    return {
        "_target_": "omniaudio.acoustic.flow_matching.FlowMatchingDecoder",
        "mel_spec": VOCODER_MEL,
        "prenet": {
            "_target_": "omniaudio.acoustic.prenet.Prenet",
            "hidden_width": 16, "mlp_width": 16, "width": 16, "num_layers": 1, "num_heads": 2,
            "ffn_width": 16, "num_mels": 20,
        },
        "estimator": {
            "_target_": "omniaudio.acoustic.unet.ConditionalUNet",
            "num_mels": 20, "width": 16, "num_mid_stages": 1, "num_transformers": 1, "num_heads": 2,
            "head_width": 8, "time_width": 16,
        },
        "hidden_rate_hz": 50.0, "mel_mean": -6.0, "mel_std": 2.0,
    }  # fmt: skip


def vocoder_config() -> Config:
    return {
        "_target_": "omniaudio.vocoders.hifigan.HiFiGAN",
        "mel_spec": VOCODER_MEL, "base_channels": 8, "upsample_rates": [20, 24], "upsample_kernels": [40, 48],
        "resblock_kernels": [3], "resblock_dilations": [[1]], "pairs": False,
    }  # fmt: skip


def save_part(folder: Path, config: Config, facts: Config | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    module = build(config)
    own = module.fingerprint() if hasattr(module, "fingerprint") else {}
    save_module(folder, module.state_dict(), config, merge_fingerprints([facts or {}, own], "test"))
    return module


def write_data(folder: Path) -> None:
    """Shards, texts and attribution; the test split holds every sentence once."""
    for split in ("train", "dev", "test"):
        with ShardWriter(folder / "shards", split) as writer:
            for i, (language, text) in enumerate(SENTENCES):
                wav = speech(0.8 + 0.1 * i, 16000, i)
                facts = {"num_samples": len(wav), "sample_rate_hz": 16000, "text": text, "language": language,
                         "speaker": f"voice-{language}", "corpus": "made"}  # fmt: skip
                writer.write(f"{language}/{split}-{i}", {"flac": encode_audio(wav, 16000)}, facts)
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"{split}.txt").write_text("\n".join(text for _, text in SENTENCES) + "\n")
    (folder / "ATTRIBUTION").write_text("Synthetic tones, made for a test; CC0-1.0\n")
    clips, hours = {"train": 3, "dev": 3, "test": 3}, {"train": 0.1, "dev": 0.01, "test": 0.01}
    checks = {"clips": {"en": clips, "it": clips}, "hours": {"en": hours, "it": hours},
              "num_items": 18, "num_good": 18, "bad": {}, "left_out": {}}  # fmt: skip
    (folder / "checks.json").write_text(json.dumps(checks))


def write_codes(folder: Path, tokenizer: Any) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        with ShardWriter(folder, split, fingerprint=tokenizer.fingerprint()) as writer:
            for i, (language, text) in enumerate(SENTENCES):
                codes = np.stack([rng.integers(size, size=12) for size in BOOKS], axis=1).astype(np.uint16)
                facts = {"text": text, "language": language, "num_frames": len(codes)}
                writer.write(f"{language}/{split}-{i}", {"codes.npy": dump_npy(codes)}, facts)


def write_records(folder: Path, losses: list[str], num_steps: int = 200) -> None:
    """metrics.jsonl, freeze.json and stamp.json of a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(losses))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(0, num_steps + 1, 5):
            curve = {name: (2 + i) * math.exp(-step / 60) + 0.5 for i, name in enumerate(losses)}
            values = {f"train/{name}": value + rng.normal(0, 0.05) for name, value in curve.items()}
            values["train/loss"] = sum(values.values())
            file.write(json.dumps({"step": step, **values, "train/grad_norm": 1.0, "lr": 1e-3}) + "\n")
            if step % 50 == 0:
                held_out = {f"val/{name}": value + 0.1 for name, value in curve.items()}
                file.write(json.dumps({"step": step, **held_out, "val/loss": sum(held_out.values())}) + "\n")
    (folder / "config.yaml").write_text(f"stage: {folder.name}\nmax_steps: {num_steps}\n")
    (folder / "log.txt").write_text("")
    freeze = {"frozen": {"judge.weight": ["a1", "a1"]} if folder.name == "tokenizer" else {},
              "num_frozen_parameters": 7, "num_trained_parameters": 1000, "trained": ["x"]}  # fmt: skip
    (folder / "freeze.json").write_text(json.dumps(freeze))
    stamp = {"key": folder.name, "seconds": 61.5, "date": "2025-01-01 00:00 UTC", "commit": "abcdef0123",
             "python": "3.11.2", "processor": "Test CPU", "cores": 2, "packages": {"torch": "2.13.0"}}  # fmt: skip
    (folder / "stamp.json").write_text(json.dumps(stamp))


def write_experiment(root: Path) -> tuple[Path, Path]:
    """Everything up to the trained parts.

    Returns:
        (exp_dir, data_dir)
    """
    exp_dir, data_dir = root / "exp" / "tiny", root / "data" / "made"
    data_dir.mkdir(parents=True)
    write_data(data_dir)
    text = TextTokenizer.train([text for _, text in SENTENCES], 280, exp_dir / "text_lm" / "tokenizer.json")
    facts = {"text_tokenizer": text.digest}
    lm = lm_config(text.vocab_size)
    tokenizer = save_part(exp_dir / "tokenizer/final/tokenizer", tokenizer_config())
    layout = {**facts, **tokenizer.fingerprint()}
    save_part(exp_dir / "text_lm/final/backbone", lm["backbone"], facts)
    for seed, name in enumerate(("pretrain_stage1", "pretrain_stage2", "sft")):
        save_part(exp_dir / name / "final/lm", lm, layout, seed)
    save_part(exp_dir / "flow/final/flow", flow_config(), tokenizer.fingerprint())
    save_part(exp_dir / "vocoder/final/vocoder", vocoder_config())
    for seed, step in enumerate(("step-00000050", "step-00000100"), 1):
        save_part(exp_dir / "flow/milestones" / step / "flow", flow_config(), tokenizer.fingerprint(), seed)
        save_part(exp_dir / "vocoder/milestones" / step / "vocoder", vocoder_config(), seed=seed)
    write_codes(exp_dir / "codes", tokenizer)
    for name, losses in STAGES.items():
        write_records(exp_dir / name, losses)
    (exp_dir / "codes" / "stamp.json").write_text(
        json.dumps({"key": "codes", "seconds": 5.0, "date": "2025-01-01"})
    )
    return exp_dir, data_dir
