import json

from omniaudio.metrics.records import read_curves, read_stage


def test_curves_by_name_and_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.5, "val/loss": 3.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "train/lo')
    assert read_curves(path) == {"train/loss": [(1.0, 2.0), (2.0, 1.5)], "val/loss": [(2.0, 3.0)]}


def test_stage_that_was_never_run_is_empty(tmp_path):
    record = read_stage(tmp_path / "flow")
    assert (record.name, record.done, record.num_steps, record.last("train/loss")) == (
        "flow",
        False,
        None,
        None,
    )


def test_stage_knows_its_steps_and_last_losses(tmp_path):
    (tmp_path / "stamp.json").write_text('{"seconds": 3}')
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 5, "train/loss": 1.0}\n{"step": 10, "train/loss": 0.5}\n'
    )
    record = read_stage(tmp_path)
    assert (record.done, record.num_steps, record.last("train/loss")) == (True, 10, 0.5)
