import json
from pathlib import Path

import numpy as np
import pytest

from omniaudio.cli import pairs
from omniaudio.data.pairs import Pair
from omniaudio.data.shards import ShardReader, ShardWriter, dump_npy
from omniaudio.dialogue.pairs import PairMaker
from omniaudio.errors import UserError

FEW = ["asr_judge=nobody", "num_prompts={train: 3, dev: 2}", "prompts_per_job=2"]


@pytest.fixture
def every_second(monkeypatch):
    """Of every second prompt a pair, without a model's having to say anything."""

    def pair(self, split, kind, place, told):
        told["prompts"] += 1
        told.update(replies=4, reward=-1)
        if place % 2:
            told["no pair: the replies are heard equally well"] += 1
            return None
        prompt = [{"role": "user", "content": [np.zeros((2, 3), np.uint16), "again"]}]
        return Pair(key=f"{split}/{place}", language="en", prompt=prompt, chosen=["a"], rejected=["b"])

    monkeypatch.setattr(PairMaker, "pair", pair)
    monkeypatch.setattr("omniaudio.metrics.asr_judge.load_judge", lambda *_: None)


def test_pairs_are_counted_and_done_once(exported, composed, every_second, capsys):
    config = composed("pairs", *FEW)
    pairs.main(config)
    folder = Path(config["exp_dir"]) / "pairs"
    assert [e.key for e in ShardReader(folder, "train").entries] == ["train/0", "train/2"]
    assert [e.key for e in ShardReader(folder, "dev").entries] == ["dev/0"]
    told = capsys.readouterr().out
    assert "train: 2 pairs of 3 prompts, heard with an error rate of 25.0%" in told
    assert "  1 x no pair: the replies are heard equally well" in told
    assert not (folder / "jobs").exists() and (folder / "stamp.json").is_file()
    pairs.main(composed("pairs", *FEW, "executor.threads=2", "device=cuda"))
    assert "skipped" in capsys.readouterr().out


def test_given_pairs_are_taken(exported, composed, tmp_path, capsys):
    line = {"prompt": "What is a phone?", "chosen": "It rings.", "rejected": "No idea."}
    lines = [{**line, "id": str(i), "split": "dev" if i == 2 else "train"} for i in range(3)] + [
        {"prompt": "?"}
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = composed(
        "pairs", f"path={tmp_path}/pairs.jsonl", f"exp_dir={tmp_path}/exp", f"model_dir={exported}"
    )
    pairs.main(config)
    told = capsys.readouterr().out
    assert "train: 2 pairs of 2 prompts" in told and "dev: 1 pairs of 1 prompts" in told
    assert "pairs.jsonl:4: chosen: " in told


def test_pairs_of_recordings_need_no_export(tmp_path, composed, capsys):
    with_voices = tmp_path / "exp" / "codes"
    for split in ("train", "dev"):
        with ShardWriter(with_voices, split) as writer:
            for i in range(5):
                facts = {"text": f"text {i}", "language": "en", "speaker": "ann", "num_frames": 3}
                writer.write(f"{split}/{i}", {"codes.npy": dump_npy(np.full((3, 2), i, np.uint16))}, facts)
    words = ["of=recordings", f"exp_dir={tmp_path}/exp", "num_prompts={train: 4, dev: 2}"]
    pairs.main(composed("pairs", *words))
    told = capsys.readouterr().out
    assert "train: 4 pairs of 5 prompts" in told and "dev: 2 pairs of 5 prompts" in told
    assert "  2 x left out: num_prompts asks for no more" in told
    found = ShardReader(tmp_path / "exp" / "pairs", "dev").entries
    assert [e.key.split("/")[0] for e in found] == ["dev"] * 2
    pairs.main(composed("pairs", *words))
    assert "skipped" in capsys.readouterr().out
    pairs.main(composed("pairs", *words, "seed=2"))
    assert "made anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["of=recording"], "config of 'recording': can be replies, recordings"),
        (
            ["of=recordings", "path=a.jsonl"],
            "config of=recordings path=a.jsonl: pairs are of one or the other",
        ),
        (
            ["of=recordings", "num_prompts={train: 1, dev: 2}"],
            r"config num_prompts\.train: 1 must be at least 2",
        ),
        (["of=recordings"], "no pairs for train and dev; two clips of one speaker and language"),
        ([], "config asr_judge: null; the replies need a recogniser"),
        (["asr_judge=x", "kinds=[sft_language]"], "config kinds: 'sft_language'"),
        ([*FEW, "num_prompts={train: 1, dev: 0}"], "no pairs for dev; lower margin, or raise num_replies"),
    ],
)
def test_mistakes_are_one_line(exported, composed, every_second, tmp_path, words, expected):
    config = {**composed("pairs", *words), "exp_dir": str(tmp_path)}
    with pytest.raises(UserError, match=expected):
        pairs.main(config)
