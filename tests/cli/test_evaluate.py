import json
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import omniaudio
from omniaudio.cli import evaluate, export
from omniaudio.dialogue import asked
from omniaudio.dialogue.report_parts import number_section
from omniaudio.errors import UserError
from omniaudio.metrics.page import Page
from omniaudio.metrics.quality import MEASURES, SECTION
from tests.cli.conftest import SMALL

FEW = [
    "num_clips=4",
    "num_samples=2",
    "num_speed_clips=1",
    "flow_steps=[1,3]",
    "stream_chunks=[2]",
    "measures=[STOI,ESTOI,PESQ,MCD,F0 RMSE]",
]


@pytest.fixture(scope="module")
def results(exported, composed) -> dict:
    config = composed("evaluate", *FEW)
    evaluate.main(config)
    return json.loads((Path(config["exp_dir"]) / "evaluate" / "results.json").read_text())


def row(results: dict, name: str) -> dict:
    (found,) = [r for r in results["rows"] if r["name"] == name]
    return found


def test_every_number_has_its_command(results):
    assert all(r["command"].startswith("omniaudio ") for r in results["rows"])
    assert row(results, "sft: ce/text")["command"].startswith("omniaudio train experiment=made/sft ")


def test_without_a_judge_its_rows_have_no_number(results):
    rows = [r for r in results["rows"] if r["section"].startswith("Intelligibility (")]
    assert len(rows) == 2 * 8
    assert {(r["text"], r["value"]) for r in rows} == {("no judge", None)}
    rows = [r for r in results["rows"] if r["section"] == asked.SECTION]
    assert [r["text"] for r in rows if r["value"] is None] == ["no judge"] * len(asked.RIGHT)
    assert row(results, "names the language")["text"].endswith("of 4")


def test_the_signal_is_measured_without_a_judge_too(results):
    rows = [row for row in results["rows"] if row["section"] == SECTION]
    measures = [m for m in MEASURES if m.name in FEW[-1]]
    assert {row["name"].split(", ")[0] for row in rows} == {m.name for m in measures}
    for measure in measures:
        found = [row for row in rows if row["name"].split(", ")[0] == measure.name]
        if None in map(find_spec, measure.packages):
            assert [row["text"] for row in found] == ["not installed"]
            continue
        kinds = [row["name"].split(", ", 1)[1] for row in found]
        assert [kind[:4] for kind in kinds] == [*["orig"] * measure.alone, "copy", *["code"] * 6]
        assert kinds[-2] == "codes → flow matching, 3 steps → vocoder"
        assert kinds[-1] == "codes → flow matching, streamed by 2 frames → vocoder"
        assert all("mean of" in row["note"] for row in found)
        assert results["signal"][measure.name] == dict(
            zip(kinds, [row["value"] for row in found], strict=True)
        )
    assert all(value is not None for value in results["signal"]["MCD"].values())


def test_steps_of_flow_matching_are_numbers(exported, composed):
    with pytest.raises(UserError, match=r"config flow_steps: \[0\] is not a list of whole numbers"):
        evaluate.main(composed("evaluate", *FEW[:3], "flow_steps=[0]"))
    with pytest.raises(UserError, match=r"flow_solvers: \['rk4'\] is not a list of euler, midpoint, heun"):
        evaluate.main(composed("evaluate", *FEW, "flow_solvers=[rk4]"))
    with pytest.raises(UserError, match=r"flow_solvers: \['heun'\] without steps; say how many"):
        evaluate.main(composed("evaluate", *FEW[:3], "flow_solvers=[heun]"))
    with pytest.raises(
        UserError, match=r"flow_warps: \['sine'\] is not a list of cosine, uniform, logit_norm"
    ):
        evaluate.main(composed("evaluate", *FEW, "flow_warps=[sine]"))
    with pytest.raises(
        UserError, match=r"flow_guidances: \[0, -1\] is not a list of numbers, each at least 0"
    ):
        evaluate.main(composed("evaluate", *FEW, "flow_guidances=[0,-1]"))


def test_no_clip_at_once_is_refused(composed):
    with pytest.raises(UserError, match="config batch_size: 0 must be a whole number, at least 1"):
        evaluate.main(composed("evaluate", *FEW, "batch_size=0"))


def test_mel_error_for_every_number_of_books(results):
    assert [len(values) for values in results["mel_mae"].values()] == [3, 3]
    assert row(results, "mel MAE, 3 books")["value"] == results["mel_mae"]["refined"][2]


def test_losses_are_the_last_held_out_ones(results, composed):
    lines = (Path(composed("evaluate")["exp_dir"]) / "sft/metrics.jsonl").read_text().splitlines()
    last = [json.loads(line)["val/ce/text"] for line in lines if "val/ce/text" in line][-1]
    assert row(results, "sft: ce/text")["value"] == last


def test_perplexity_before_and_after(results):
    before, after = (row(results, f"text perplexity {when}")["value"] for when in ("before", "after"))
    assert before > 1 and after > 1
    assert row(results, "change")["value"] == pytest.approx(after / before - 1)


def test_text_before_and_after_every_stage_needs_no_export(results, trained, composed, tmp_path):
    """Here the held-out texts are a few words; a file of questions is asked besides, without the rest."""
    names = ["before", "after", *(f"after {stage}" for stage in ("pretrain_stage1", "sft"))]
    rows = [row for row in results["rows"] if row["name"].startswith("next words")]
    assert rows and {(row["value"], row["text"]) for row in rows} == {
        (None, "held-out texts too short or too few")
    }
    path = tmp_path / "easy.jsonl"
    path.write_text(json.dumps({"context": "one two", "choices": ["three", "six seven"], "answer": 0}))
    folder = shutil.copytree(trained[0], tmp_path / "run", ignore=shutil.ignore_patterns("export*"))
    evaluate.main(composed("evaluate", "task=text", f"choices.path={path}", f"exp_dir={folder}"))
    found = json.loads((folder / "evaluate_text/results.json").read_text())["rows"]
    for name in ("sft: ce/text", "text perplexity after"):
        assert row({"rows": found}, name)["value"] == row(results, name)["value"] is not None
    found = [row for row in found if "held-out losses" not in row["section"]]
    assert [row["name"] for row in found if "perplexity" in row["name"]] == [
        f"text perplexity {n}" for n in names
    ]
    easy = [row for row in found if row["name"].startswith("easy")]
    there = [row["value"] is not None for row in found if "perplexity" in row["name"]]
    assert [row["name"] for row in easy] == [
        f"easy {name}" for name, is_there in zip(names, there, strict=True) if is_there
    ]
    assert there[:2] == [True, True]
    assert all(row["value"] in (0.0, 1.0) and "chance 50.0%" in row["note"] for row in easy)
    assert all({"task=text", f"choices.path={path}"} < set(shlex.split(row["command"])) for row in found)


def test_samples_are_there_to_hear_and_see(results, composed):
    folder = Path(composed("evaluate")["exp_dir"]) / "evaluate"
    assert len(results["samples"]) == 2
    for sample in results["samples"]:
        assert set(sample["wavs"]) == {
            "original",
            "copy",
            "coarse",
            "refined",
            "flow",
            "flow_1",
            "flow_3",
            "streamed_2",
        }
        assert all((folder / path).stat().st_size > 44 for path in sample["wavs"].values())
        assert (folder / sample["mels"]).is_file()


def test_speed_is_measured(results):
    assert row(results, "real-time factor, speech → codes")["value"] > 0
    assert row(results, "real-time factor, language model → codes")["value"] > 0


def test_card_shows_the_numbers(results, exported):
    assert "mel MAE, 3 books" in (exported / "README.md").read_text()


def test_the_text_of_another_export_is_scored_as_it_was_loaded(exported, composed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    weights = load_file(other / "model.safetensors")
    weights["lm.backbone.lm_head.weight"] = 0 * weights["lm.backbone.lm_head.weight"]
    save_file(weights, other / "model.safetensors")
    config = composed("evaluate", "task=text", f"model_dir={other}", f"exp_dir={tmp_path}", "loss_stages=[]")
    usual = composed("evaluate")
    evaluate.main({**config, **{name: usual[name] for name in ("text_before", "text_after", "texts")}})
    rows = json.loads((tmp_path / "evaluate_text/results.json").read_text())["rows"]
    scored = row({"rows": rows}, "text perplexity of the export")["value"]
    assert scored == pytest.approx(omniaudio.load(other).lm.backbone.vocab_size), "all pieces are as likely"


def test_an_export_in_8_bits_is_scored_and_named(composed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("omniaudio.dialogue.int8.MIN_SIZE", 1)
    folder = tmp_path / "int8"
    export.main({**composed("export", *SMALL, "int8=true", f"model_dir={folder}"), "exp_dir": str(tmp_path)})
    few = [
        "num_clips=1",
        "num_speed_clips=1",
        "measures=[mel error]",
        "flow_steps=[1]",
        "flow_solvers=[heun]",
        "flow_warps=[logit_normal]",
        "flow_guidances=[0]",
    ]
    config = composed("evaluate", *few, f"model_dir={folder}", f"exp_dir={tmp_path}", "loss_stages=[]")
    usual = composed("evaluate")
    evaluate.main({**config, **{name: usual[name] for name in ("text_before", "text_after", "texts")}})
    assert f"rows of {folder}" in capsys.readouterr().out
    found = json.loads((tmp_path / "evaluate/results.json").read_text())
    own = [shlex.split(row["command"]) for row in found["rows"] if "omniaudio train" not in row["command"]]
    assert own and all(f"model_dir={folder}" in words for words in own), "each row says which export it is of"
    assert (
        row(
            found,
            "mel error, codes → flow matching, 1 step of heun, logit-normal times, guidance 0 → vocoder",
        )["value"]
        > 0
    )
    assert row(found, "text perplexity of the export")["value"] > 1
    page = Page(title="t", lead="", facts=[])
    number_section(page, found, tmp_path)
    assert f"Measured of {folder} on 1 clips" in page.sections[0][2]


def test_sound_by_steps_is_measured_once_and_again_with_a_new_milestone(exported, composed, tmp_path, capsys):
    exp_dir = tmp_path / "exp"
    for name in ("flow", "vocoder"):
        shutil.copytree(Path(composed("evaluate")["exp_dir"]) / name, exp_dir / name)
    few = ["curve.num_clips=1", "curve.measures=[mel error]", f"model_dir={exported}"]
    config = composed("evaluate", "task=curve", *few, f"exp_dir={exp_dir}")
    evaluate.main(config)
    told = capsys.readouterr().out
    assert (
        "flow: codes → flow matching → vocoder" in told
        and "| steps | training loss, mel/l1 | mel error |" in told
    )
    found = json.loads((exp_dir / "evaluate_curve/results.json").read_text())
    assert [(record["stage"], len(record["points"])) for record in found["stages"]] == [
        ("flow", 3),
        ("vocoder", 3),
    ]
    assert {"task=curve", "curve.num_clips=1"} < set(shlex.split(found["command"]))
    evaluate.main(config)
    assert "skipped" in capsys.readouterr().out
    shutil.rmtree(exp_dir / "flow/milestones/step-00000050")
    evaluate.main(config)
    found = json.loads((exp_dir / "evaluate_curve/results.json").read_text())
    assert [len(record["points"]) for record in found["stages"]] == [2, 3]
