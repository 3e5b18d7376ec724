import json
import re
from pathlib import Path

import hydra
import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from omniaudio.cli.main import main as command_line
from omniaudio.cli.prepare import main, summary
from omniaudio.errors import UserError
from tests.corpus.make_audio import RATE_HZ, make_asterisk, tone, write_audio

CONF = Path(__file__).parents[2] / "conf"


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("prepare", overrides=list(overrides)), resolve=True)


@pytest.fixture
def config(tmp_path):
    make_asterisk(tmp_path / "unpacked", "en", {f"w{i}": (f"word {i}", tone()) for i in range(40)})

    def make(*overrides):
        words = [f"data_dir={tmp_path}/out", f"corpus.root={tmp_path}/unpacked", "corpus.languages=[en]"]
        shares = ["split.train=0.5", "split.dev=0.25", "split.test=0.25"]
        return compose(*words, *shares, "text_source=none", "num_workers=0", *overrides)

    return make


def test_prepares_and_then_skips(config, capsys, tmp_path):
    main(config())
    assert "40 of 40 recordings are good, 0.7 min in all" in capsys.readouterr().out
    main(config())
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/out is prepared already"
    main(config("checks.min_sec=0.5"))
    assert "40 of 40" in capsys.readouterr().out


def test_steps_run_alone(config, tmp_path):
    main(config("step=fetch"))
    assert not (tmp_path / "out" / "shards").exists()
    main(config("step=shards"))
    assert (tmp_path / "out" / "prepared.json").exists()
    with pytest.raises(UserError, match="config step: 'shard' is not one of all, fetch, shards"):
        main(config("step=shard"))


def test_a_users_folder(tmp_path, capsys):
    for i in range(40):
        write_audio(tmp_path / "my audio" / f"{i}.wav")
    (tmp_path / "my audio" / "transcripts.tsv").write_text("".join(f"{i}\tword {i}\n" for i in range(40)))
    words = ["corpus=folder", f"corpus.folder='{tmp_path}/my audio'", f"data_dir={tmp_path}/out"]
    shares = ["split.train=0.5", "split.dev=0.25", "split.test=0.25"]
    config = compose(*words, *shares, "text_source=none", "num_workers=0")
    main(config)
    assert "40 of 40 recordings" in capsys.readouterr().out
    main(config)
    assert "prepared already" in capsys.readouterr().out
    write_audio(tmp_path / "my audio" / "3.wav", tone(2.0))  # the user records it again
    main(config)
    assert "40 of 40 recordings are good, 0.7 min" in capsys.readouterr().out


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_step_leaves_its_config_log_and_metrics(config, tmp_path):
    for step in ("fetch", "shards"):
        main(config(f"record_dir={tmp_path}/exp/{step}", f"step={step}"))
        assert f"step: {step}" in (tmp_path / "exp" / step / "config.yaml").read_text()
    assert [line["step"] for line in metrics(tmp_path / "exp/fetch")] == ["fetch"]
    (line,) = metrics(tmp_path / "exp/shards")
    assert (line["step"], line["num_good"]) == ("shards", 40)
    assert "40 of 40 recordings are good" in (tmp_path / "exp/shards/log.txt").read_text()
    main(config(f"record_dir={tmp_path}/exp2/all"))  # another experiment over the same data
    assert [line["step"] for line in metrics(tmp_path / "exp2/all")] == ["fetch", "shards"]


BAD = {
    "no transcript": (tone(), None, "missing transcript"),
    "no words": (tone(), "?!", "empty transcript"),
    "no samples": (tone(0.0), "word", "empty audio"),
    "stereo": (np.stack([tone(), tone()], 1), "word", "several channels: 1.*checks.downmix"),
    "silence": (tone(amplitude=0.0), "word", "silence"),
    "not a number": (np.array([0.1, np.nan] * 9_000, np.float32), "word", "audio not finite"),
    "another rate": (tone(), "word", "wrong sample rate: 1.*checks.resample"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recordings_end_in_one_line(tmp_path, capsys, case):
    wav, text, expected = BAD[case]
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, samples, words in (("a", tone(), "hello"), ("b", wav, text)):
        rate_hz = 8_000 if (case, name) == ("another rate", "b") else RATE_HZ
        soundfile.write(folder / f"{name}.wav", samples, rate_hz, subtype="FLOAT")
        if words is not None:
            (folder / f"{name}.txt").write_text(words)
    words = ["prepare", "corpus=folder", f"corpus.folder={folder}", f"data_dir={tmp_path}/out"]
    with pytest.raises(SystemExit) as error:
        command_line([*words, "text_source=none", "num_workers=0"])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(expected, line), line
    assert "1 of 2 recordings are bad" in line
    assert str(tmp_path / "out" / "checks.json") in line


def test_the_data_folder_is_named_after_the_corpus():
    assert compose()["data_dir"] == "data/asterisk"
    assert compose("corpus=folder", "corpus.folder=x")["data_dir"] == "data/folder"


def test_every_text_source_composes():
    for path in (CONF / "text_source").glob("*.yaml"):
        assert compose(f"text_source={path.stem}", *["text_source.path=x"] * (path.stem == "file"))


def test_summary_by_hand():
    report = {
        "num_items": 5,
        "num_good": 3,
        "bad": {"too short": 2},
        "left_out": {},
        "clips": {"en": {"train": 2, "dev": 1}},
        "hours": {"en": {"train": 0.1, "dev": 0.05}},
    }
    assert summary(report).splitlines() == [
        "  en: train 2 (6.0 min), dev 1 (3.0 min)",
        "  3 of 5 recordings are good, 9.0 min in all",
        "  bad: too short 2",
        "  left out: none",
    ]
