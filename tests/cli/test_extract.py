from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from omniaudio.cli.main import main
from omniaudio.data.shards import ShardReader, load_npy
from omniaudio.errors import UserError
from omniaudio.fingerprint import check_fingerprints
from omniaudio.frontend.audio import read_audio
from omniaudio.training.artifacts import load_module, read_fingerprint


def test_codes_are_those_of_each_clip_alone(tiny_chain, tiny_data):
    tokenizer = load_module(tiny_chain / "tokenizer" / "final" / "tokenizer")
    audio, codes = ShardReader(tiny_data / "shards", "dev"), ShardReader(tiny_chain / "codes", "dev")
    assert [e.key for e in audio.entries] == [e.key for e in codes.entries]
    for i, entry in enumerate(codes.entries):
        wav = torch.from_numpy(read_audio(audio.read(i)["flac"]))
        alone = tokenizer.encode(wav[None], torch.tensor([len(wav)]))
        stored = load_npy(codes.read(i)["codes.npy"])
        assert stored.dtype == np.uint16 and stored.shape == (entry.facts["num_frames"], 8)
        assert (alone.codes_BSK[0].numpy() == stored).all()
        assert entry.facts["text"] == audio.entries[i].facts["text"]


def test_shards_carry_the_fingerprint_of_the_tokenizer(tiny_chain):
    ours = read_fingerprint(tiny_chain / "tokenizer" / "final" / "tokenizer")
    theirs = ShardReader(tiny_chain / "codes", "train").fingerprint
    assert {"codebook_sizes", "code_rate_hz"} <= theirs.keys()
    check_fingerprints(ours, theirs, "codes")
    with pytest.raises(UserError, match="code_rate_hz: 12.5 there, 25.0 here"):
        check_fingerprints({**ours, "code_rate_hz": 25.0}, theirs, "codes")


def test_before_the_tokenizer_there_is_one_line(tiny_data, tmp_path, capsys):
    words = ["system=s", "scale=tiny", f"data_dir={tiny_data}", f"exp_dir={tmp_path}"]
    with pytest.raises(SystemExit):
        main(["extract", *words])
    assert "tokenizer is missing; run the stage that makes it first" in capsys.readouterr().err


def test_a_damaged_clip_is_left_out_and_said(tiny_chain, tiny_data, tmp_path, capsys):
    data, exp = tmp_path / "data", tmp_path / "exp"
    shutil.copytree(tiny_data / "shards", data / "shards")
    (exp / "tokenizer").mkdir(parents=True)
    shutil.copytree(tiny_chain / "tokenizer", exp / "tokenizer", dirs_exist_ok=True)
    reader = ShardReader(data / "shards", "dev")
    entry = reader.entries[1]
    tar = reader.shards[entry.shard]
    content = bytearray(tar.read_bytes())
    content[entry.members["flac"].offset + 99] ^= 1
    tar.write_bytes(content)
    main(["extract", "system=s", "scale=tiny", f"data_dir={data}", f"exp_dir={exp}", "splits=[dev]"])
    keys = [e.key for e in ShardReader(exp / "codes", "dev").entries]
    assert keys == [e.key for e in reader.entries if e.key != entry.key]
    assert f"left out: {tar}: member '{entry.key}.flac'" in capsys.readouterr().out
    whole = ShardReader(tiny_chain / "codes", "dev")
    for i, key in enumerate(keys):
        same = next(k for k, e in enumerate(whole.entries) if e.key == key)
        assert (
            load_npy(whole.read(same)["codes.npy"])
            == load_npy(ShardReader(exp / "codes", "dev").read(i)["codes.npy"])
        ).all()
