"""Every egs/*/prepare.sh of a public corpus, on a miniature of its files, up to shards that can be read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from omniaudio.data.shards import ShardReader
from tests.corpus import make_trees

ROOT = Path(__file__).parents[2]
HALVES = ["split={train: 0.4, dev: 0.3, test: 0.3}"]
CASES = {
    "librispeech": (
        ["corpus.parts=[train-clean-100,dev-clean,test-clean]"],
        {"train": 2, "dev": 1, "test": 1},
        "en",
    ),
    "libritts": ([], {"train": 2, "dev": 1, "test": 1}, "en"),
    "ljspeech": (HALVES, 32, "en"),
    "aishell1": ([], {"train": 2, "dev": 1, "test": 1}, "zh"),
    "wenetspeech": ([], {"train": 1, "dev": 2, "test": 1}, "zh"),
    "gigaspeech": ([], {"train": 1, "dev": 1, "test": 1}, "en"),
    "covost2": (["corpus.source=de"], {"train": 2, "dev": 1, "test": 1}, "de"),
    "voice_assistant": ([*HALVES, "corpus.repository=null"], 29, "en"),
    "asterisk": ([*HALVES, "corpus.languages=[it]"], 24, "it"),
    "fotaq": (HALVES, 24, "en"),
}
ROOTS = {"fotaq": "corpus.bundle"}  # the option that names the files, where it is not corpus.root


def test_every_corpus_is_here() -> None:
    assert {path.parent.name for path in ROOT.glob("egs/*/prepare.sh")} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_miniature_of_the_corpus_becomes_shards(name: str, tmp_path: Path) -> None:
    words, expected, language = CASES[name]
    (tmp_path / "tree").mkdir()
    root = getattr(make_trees, name)(tmp_path / "tree")
    command = [
        "bash",
        str(ROOT / "egs" / name / "prepare.sh"),
        f"{ROOTS.get(name, 'corpus.root')}={root}",
        f"data_dir={tmp_path / 'data'}",
    ]
    words = [*words, "text_source=none", "num_workers=0"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    readers = {split: ShardReader(tmp_path / "data" / "shards", split) for split in ("train", "dev", "test")}
    if isinstance(expected, int):
        assert sum(map(len, readers.values())) == expected and all(map(len, readers.values()))
    else:
        assert {split: len(reader) for split, reader in readers.items()} == expected
    for reader in readers.values():
        assert reader.verify()
        for entry in reader.entries:
            facts = entry.facts
            assert facts["text"] and facts["language"] == language and facts["sample_rate_hz"] == 16_000
            assert 15_000 < facts["num_samples"] < 33_000 and facts["speaker"]
            assert ("role" in facts) == (name == "voice_assistant")
    checks = json.loads((tmp_path / "data" / "checks.json").read_text())
    assert not checks["bad"]
    assert (tmp_path / "data" / "ATTRIBUTION").read_text().strip()
