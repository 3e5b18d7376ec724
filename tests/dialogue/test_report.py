import json
from typing import Any

from omniaudio.dialogue.report import _header as header
from omniaudio.dialogue.report import read_experiment, write_page

CONFIG: dict[str, Any] = {
    "title": "t", "tag": "t", "system": "s", "scale": "tiny", "data": "made", "max_samples": 1,
    "stages": {"text_lm": "text", "flow": "flow"},
}  # fmt: skip


def config(trained) -> dict[str, Any]:
    return {**CONFIG, "exp_dir": str(trained[0]), "data_dir": str(trained[1])}


def test_nothing_has_to_be_there(trained, tmp_path):
    experiment = read_experiment({**config(trained), "exp_dir": str(tmp_path / "none")}, tmp_path)
    assert experiment.missing == ["text_lm", "flow"]
    page = write_page(experiment).read_text()
    assert "Not finished yet: text_lm, flow" in page and "unknown" in page


def test_printed_value_is_that_of_the_last_row_and_never_made_up(trained, tmp_path):
    experiment = read_experiment(config(trained), tmp_path)
    experiment.results = {
        "rows": [
            {"name": "mel MAE, 1 book", "value": 2.0, "text": "2.000"},
            {"name": "mel MAE, 2 books", "value": 1.0, "text": "1.000"},
            {"name": "CER, flow", "value": None, "text": "no judge"},
        ]
    }
    assert experiment.value("mel MAE") == "1.000"
    assert experiment.value("CER, flow") is None and experiment.value("speed") is None


def test_the_rate_that_is_seen_first_is_that_of_the_models_own_steps(trained, tmp_path):
    experiment = read_experiment(config(trained), tmp_path)
    rate = "CER, codes → flow matching"
    names = {
        f"{rate} → vocoder": "20.4%",
        f"{rate}, 1 step → vocoder": "21.9%",
        f"{rate}, streamed by 4 frames": "9%",
    }
    rows = [{"name": name, "value": 0.5, "text": text} for name, text in names.items()]
    experiment.results = {"rows": rows}
    tiles = "".join(header(experiment).tiles)
    assert "20.4%" in tiles and "21.9%" not in tiles and "9%" not in tiles.replace("21.9%", "")


def test_broken_records_do_not_break_the_page(trained, tmp_path):
    exp_dir = tmp_path / "exp"
    for name, content in (
        ("text_lm/stamp.json", "{"),
        ("generate/samples.json", "[{"),
        ("flow/metrics.jsonl", "x\n"),
    ):
        (exp_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (exp_dir / name).write_text(content)
    experiment = read_experiment({**config(trained), "exp_dir": str(exp_dir)}, tmp_path)
    assert experiment.samples == [] and experiment.missing == ["text_lm", "flow"]
    write_page(experiment)


def test_generated_text_cannot_become_markup(trained, tmp_path):
    experiment = read_experiment(config(trained), tmp_path)
    sample = {"kind": "transcribe", "source": "held out", "text": "<script>", "prompt_text": "<b>", "seed": 0}
    experiment.samples = [json.loads(json.dumps(sample))]
    assert "<script>" not in write_page(experiment).read_text()
