from __future__ import annotations

import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import yaml

from omniaudio.data.shards import ShardWriter
from omniaudio.errors import UserError
from omniaudio.stage import input_key, stage


def run(folder: Path, config: dict, inputs: list[Path]) -> bool:
    with stage(folder, config=config, inputs=inputs) as work:
        if not work.done:
            (folder / "out.txt").write_text("made")
        return not work.done


def test_done_once_and_again_when_config_or_inputs_change(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("1")
    assert run(tmp_path / "s", {"a": 1, "exp_dir": "x"}, [source])
    assert not run(tmp_path / "s", {"a": 1, "exp_dir": "y"}, [source])  # paths do not count
    assert run(tmp_path / "t", {"a": "x/part", "exp_dir": "x"}, [source])
    assert not run(tmp_path / "t", {"a": "y/part", "exp_dir": "y"}, [source])
    assert run(tmp_path / "s", {"a": 2, "exp_dir": "x"}, [source])
    assert (tmp_path / "s.old1" / "out.txt").exists()  # nothing is lost
    source.write_text("2")
    assert run(tmp_path / "s", {"a": 2, "exp_dir": "x"}, [source])


def test_only_the_decisive_part_of_a_config_counts(tmp_path):
    for number, expected in ((1, False), (2, True), (3, True)):
        with stage(tmp_path / "s", config={"a": 1, "b": number}, decisive={"a": 1}) as work:
            assert work.done is expected


def test_what_changes_memory_alone_does_not_count(tmp_path):
    for recompute, attention, width, expected in (
        (False, "auto", 3, False),
        (True, "flex", 3, True),
        (True, "flex", 4, False),
    ):
        config = {"model": {"lm": {"recompute": recompute, "attention": attention, "width": width}}}
        with stage(tmp_path / "s", config=config) as work:
            assert work.done is expected


def test_what_is_easily_made_again_is_not_kept(tmp_path):
    for number in (1, 2):
        with stage(tmp_path / "s", config={"a": number}, keep_old=False) as work:
            (work.folder / f"{number}.txt").touch()
    assert not (tmp_path / "s.old1").exists() and not (tmp_path / "s" / "1.txt").exists()


def test_a_stage_depends_on_the_stamp_of_the_one_before(tmp_path):
    assert run(tmp_path / "one", {"a": 1}, [])
    assert run(tmp_path / "two", {}, [tmp_path / "one"])
    assert not run(tmp_path / "two", {}, [tmp_path / "one"])
    assert run(tmp_path / "one", {"a": 2}, [])
    assert run(tmp_path / "two", {}, [tmp_path / "one"])


def test_an_unfinished_stage_goes_on_in_its_folder(tmp_path):
    with pytest.raises(RuntimeError), stage(tmp_path / "s", config={"a": 1}) as work:
        (work.folder / "half.txt").write_text("half")
        raise RuntimeError
    with stage(tmp_path / "s", config={"a": 1}) as work:
        assert not work.done and (work.folder / "half.txt").exists()
    stamp = json.loads((tmp_path / "s" / "stamp.json").read_text())
    assert {"key", "seconds", "date", "commit", "packages", "processor"} <= stamp.keys()


def test_log_and_metrics_are_those_of_the_run_that_ended(tmp_path):
    with pytest.raises(UserError), stage(tmp_path / "s", config={}) as work:
        work.metrics({"step": 0, "part": "first"})
        raise UserError("no more space")
    with stage(tmp_path / "s", config={}) as work:
        for part in ("first", "second"):
            work.metrics({"step": 0, "part": part})
        work.log("both parts")
    lines = (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["part"] for line in lines] == ["first", "second"]
    stopped, done = (tmp_path / "s" / "log.txt").read_text().splitlines()
    assert "UserError: no more space" in stopped and done.endswith("both parts")


def test_no_right_to_write_is_one_line():
    """As another user where the tests run as root, who may write everywhere."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=f"{folder}/s: Permission denied"):
                run(Path(folder) / "s", {"a": 1}, [])
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o755)


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.*is missing; run the stage"):
        run(tmp_path / "s", {}, [tmp_path / "gone"])
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match="half.*is not finished"):
        run(tmp_path / "s", {}, [tmp_path / "half"])


def test_secrets_are_not_saved(tmp_path):
    run(tmp_path / "s", {"tracker": {"api_key": "abc", "name": "n"}, "hub_token": "t", "tokens": 3}, [])
    saved = yaml.safe_load((tmp_path / "s" / "config.yaml").read_text())
    assert saved == {"tracker": {"api_key": "***", "name": "n"}, "hub_token": "***", "tokens": 3}


def test_a_folder_of_shards_is_what_its_samples_are(tmp_path):
    keys = []
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        with ShardWriter(tmp_path / name, "train") as writer:
            writer.write("k", {"txt": content}, {"num": 1})
        keys.append(input_key(tmp_path / name))
    assert keys[0] == keys[1] != keys[2]
    (tmp_path / "a" / "train.shards.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        input_key(tmp_path / "a")


def test_a_large_file_is_hashed_piece_by_piece(tmp_path):
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    tracemalloc.start()
    assert input_key(tmp_path / "large") == "2daeb1f36095b44b"
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()
