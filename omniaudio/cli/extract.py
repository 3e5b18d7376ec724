"""Write the codes of every utterance, once, with the trained tokenizer.

Reads audio shards and the tokenizer of ${exp_dir}/tokenizer; writes ${exp_dir}/codes/<split>-*.tar with
``codes.npy`` (frames x books, uint16) and the transcript of every utterance, and an index that carries the
fingerprint of the token layout. Later stages compose their sequences from these shards and never tokenize again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omniaudio.errors import UserError
from omniaudio.stage import stage


def main(config: dict[str, Any]) -> None:
    """Extract the codes of all splits, unless it is done."""
    inputs = [config["shards_dir"], Path(config["tokenizer"]).parent.parent]
    with stage(Path(config["exp_dir"]) / "codes", config=config, inputs=inputs) as run:
        if run.done:
            return
        for split in config["splits"]:
            num_clips, num_frames, damaged = extract_split(config, split, run.folder)
            run.metrics({"split": split, "clips": num_clips, "frames": num_frames, "damaged": len(damaged)})
            run.log(f"{split}: {num_clips} clips, {num_frames} code frames")
            for line in damaged:
                run.log(f"left out: {line}")


def extract_split(config: dict[str, Any], split: str, folder: Path) -> tuple[int, int, list[str]]:
    """Codes of one split; returns the number of clips and of code frames, and a line for each damaged clip."""
    import numpy as np
    import torch

    from omniaudio.cli.train import set_threads
    from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy
    from omniaudio.data.steps import pad, readable
    from omniaudio.frontend.audio import read_audio
    from omniaudio.progress import track
    from omniaudio.training.artifacts import load_module
    from omniaudio.types import device_of

    set_threads(config["num_threads"])
    tokenizer: Any = load_module(config["tokenizer"], config["device"])
    reader = ShardReader(config["shards_dir"], split)
    if max(tokenizer.codebook_sizes) > np.iinfo(np.uint16).max + 1:
        raise UserError(
            f"{config['tokenizer']}: a book of {max(tokenizer.codebook_sizes)} codes; shards hold 65536"
        )
    # Similar lengths side by side, written in the order of the audio shards.
    order = np.argsort(reader.column("num_samples"), kind="stable").tolist()
    groups = [order[i : i + config["batch_size"]] for i in range(0, len(order), config["batch_size"])]
    codes: dict[int, Any] = {}
    damaged: list[str] = []

    def read(i: int) -> tuple[int, Any]:
        return i, read_audio(reader.member(i, "flac"), sample_rate_hz=tokenizer.sample_rate_hz)

    for group in track(groups, f"codes of {split}"):
        found, lost = readable(read, group)
        damaged += lost
        wav_BN, num_samples_B = pad([wav_N for _, wav_N in found])
        device = device_of(tokenizer)
        with torch.inference_mode():
            out = tokenizer.encode(wav_BN.to(device), num_samples_B.to(device))
        for (i, _), codes_SK, num in zip(found, out.codes_BSK.cpu(), out.num_frames_B.tolist(), strict=True):
            codes[i] = codes_SK[:num].numpy().astype(np.uint16)
    with ShardWriter(folder, split, fingerprint=tokenizer.fingerprint()) as writer:
        for i, codes_SK in sorted(codes.items()):
            entry = reader.entries[i]
            writer.write(
                entry.key, {"codes.npy": dump_npy(codes_SK)}, {**entry.facts, "num_frames": len(codes_SK)}
            )
    return len(codes), sum(map(len, codes.values())), damaged
