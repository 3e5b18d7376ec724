import json
from pathlib import Path

from omniaudio.dialogue import report_parts
from omniaudio.dialogue.report_parts import (
    curve_section,
    freeze_section,
    loss_names,
    number_section,
    stage_section,
)
from omniaudio.metrics.page import Page
from omniaudio.metrics.records import StageRecord

CURVE = [(0.0, 2.0), (10.0, 1.0)]


def page() -> Page:
    return Page(title="t", lead="", facts=[])


def stage(**values) -> StageRecord:
    return StageRecord(name="sft", folder=Path("sft"), **values)


def test_losses_of_the_curves_total_first_without_books_and_statistics():
    names = ("loss", "ce/text", "ce/text/asr", "ce/audio/book0", "grad_norm", "usage/book0", "lr")
    curves = {f"train/{name}": CURVE for name in names} | {"val/ce/text": CURVE, "lr": CURVE}
    assert loss_names(curves) == ["loss", "ce/text", "ce/text/asr"]


def test_one_loss_is_not_drawn_twice():
    assert loss_names({"train/loss": CURVE, "train/ce/text": CURVE}) == ["ce/text"]


def test_stage_table_has_steps_minutes_and_fall(tmp_path):
    made = page()
    record = stage(stamp={"seconds": 90, "date": "today"}, curves={"train/loss": CURVE, "val/loss": CURVE})
    stage_section(made, {"stages": {"sft": "talks"}, "data_dir": str(tmp_path)}, {"sft": record}, tmp_path)
    html = made.sections[0][2]
    assert ">1.5<" in html and ">10<" in html and "2.000 → 1.000" in html and "(-50%)" in html


def test_numbers_carry_their_own_command_when_they_differ(tmp_path):
    made = page()
    row = {"section": "s", "note": "", "value": 1.0, "text": "1"}
    results = {
        "rows": [{**row, "name": "a", "command": "omniaudio a"}, {**row, "name": "b", "command": "omniaudio b"}],
        "books": [{"size": 4, "num_frames": 1, "usage": 0.25, "perplexity": 1.0}],
        "mel_mae": {"refined": [1.0], "coarse": [1.1]},
        "num_clips": 1, "clip_seconds": 1.0, "split": "test", "asr_judge": None,
    }  # fmt: skip
    number_section(made, results, tmp_path)
    html = made.sections[0][2]
    assert "Measured on 1 clips" in html, "results of before do not say of which export they are"
    assert "omniaudio a" in html and "omniaudio b" in html and "No judge was given" in html
    assert (tmp_path / "images/books.png").is_file() and (tmp_path / "images/mae.png").is_file()


def test_freezing_is_proved_by_equal_hashes():
    made = page()
    freeze = {
        "frozen": {"a": ["1", "1"], "b": ["1", "2"]},
        "num_trained_parameters": 5,
        "num_frozen_parameters": 7,
    }
    freeze_section(made, {"sft": stage(freeze=freeze)})
    assert "1 moved" in made.sections[0][2]
    freeze["frozen"] = {"a": ["1", "1"]}
    freeze_section(made, {"sft": stage(freeze=freeze)})
    assert "all 1 unchanged" in made.sections[1][2]


def test_a_run_without_losses_says_so(tmp_path):
    made = page()
    curve_section(made, {"sft": stage()}, tmp_path)
    assert "No losses yet" in made.sections[0][2]


def test_what_a_build_let_through_is_on_the_page(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "report"
    data.mkdir()
    assert report_parts.build_cards(data, folder) == []
    report = {
        "steps": {"speak": [1200, 1100], "gate<1>": [1100, 11]},
        "faults": {"no <text>": 3, "noise": 1086},
    }
    (data / "build.json").write_text(json.dumps(report))
    (data / "build.png").write_bytes(b"a picture")
    (card,) = report_parts.build_cards(data, folder)
    assert (
        "1,200" in card
        and "1.0%" in card
        and "noise 1,086, no &lt;text&gt; 3" in card
        and "gate<1>" not in card
    )
    assert (folder / "images" / "build.png").read_bytes() == b"a picture" and "images/build.png" in card
