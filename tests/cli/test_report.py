import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from omniaudio.cli import evaluate, generate, report
from omniaudio.errors import UserError


class Links(HTMLParser):
    """All src and href of a page, and whether its tags close."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(path: Path) -> tuple[str, Links]:
    page = path.read_text("utf-8")
    links = Links()
    links.feed(page)
    assert links.open == []
    return page, links


@pytest.fixture(scope="module")
def folder(exported, composed) -> Path:
    evaluate.main(
        composed("evaluate", "num_clips=4", "num_samples=2", "num_speed_clips=1", "measures=[ESTOI,MCD]")
    )
    evaluate.main(composed("evaluate", "task=curve", "curve.num_clips=2", "curve.measures=[MCD]"))
    generate.main(composed("generate", "num_seen=1", "num_unseen=1", "num_clips=1"))
    config = composed("report")
    report.main(config)
    return Path(config["exp_dir"]) / "report"


def test_page_stands_alone(folder, tmp_path):
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    page, links = read(moved / "index.html")
    assert "http" not in page.replace("https://www.asterisk.org", "")
    files = [link for link in links.links if not link.startswith("#")]
    assert all((moved / link).is_file() for link in files)
    samples = json.loads((folder.parent / "generate" / "samples.json").read_text())
    num_generated = sum(bool(sample.get(name)) for sample in samples for name in ("prompt_wav", "wav"))
    num_by_steps = 2 * 2 * 4  # stages, clips, the original beside three steps
    num_sounds = 2 * 5 + num_by_steps + num_generated
    assert sum(link.endswith(".wav") for link in files) == num_sounds


def test_page_shows_every_part(folder):
    page, links = read(folder / "index.html")
    anchors = set(re.findall(r'id="(\w+)"', page))
    assert anchors == {"listen", "expect", "says", "numbers", "stages", "curves", "frozen", "environment"}
    assert {link for link in links.links if link.startswith("#")} == {f"#{a}" for a in anchors}
    assert "resampled to 24000 Hz" in page and "Not finished yet" not in page
    assert "omniaudio evaluate system=made" in page and "no judge" in page
    assert "<th>speech</th>" in page and page.count("The signal against the recording") == 1
    assert "images/quality.png" in links.links
    assert {"images/growth_flow.png", "images/growth_vocoder.png"} <= set(links.links)
    assert page.count("<b>step 50</b>") == 4 and "200 (end)" in page and "task=curve" in page
    assert "CC0-1.0" in page and "all 1 unchanged" in page


def test_page_renders_when_nothing_but_one_stage_is_there(trained, composed, tmp_path):
    exp_dir = tmp_path / "exp"
    exp_dir.mkdir()
    shutil.copytree(trained[0] / "tokenizer", exp_dir / "tokenizer")
    report.main({**composed("report"), "exp_dir": str(exp_dir)})
    page, _ = read(exp_dir / "report" / "index.html")
    assert "Not finished yet: text_lm, codes" in page
    assert "`omniaudio evaluate task=curve` has not run" in page
    assert "the stage `evaluate` has not run" in page and "the stage `generate` has not run" in page
    assert "not measured" in page


def test_a_stage_that_moved_a_frozen_tensor_is_seen(trained, composed, tmp_path):
    exp_dir = tmp_path / "exp"
    shutil.copytree(trained[0] / "tokenizer", exp_dir / "tokenizer")
    freeze = json.loads((exp_dir / "tokenizer/freeze.json").read_text())
    freeze["frozen"]["judge.weight"][1] = "b2"
    (exp_dir / "tokenizer/freeze.json").write_text(json.dumps(freeze))
    report.main({**composed("report"), "exp_dir": str(exp_dir)})
    assert '<span class="bad">1 moved</span>' in (exp_dir / "report/index.html").read_text()


def test_new_results_make_a_new_page(folder, composed, capsys):
    report.main(composed("report"))
    assert "skipped" in capsys.readouterr().out


def test_unknown_experiment_is_one_line(composed, tmp_path):
    with pytest.raises(UserError, match="does not exist; check tag="):
        report.main({**composed("report"), "exp_dir": str(tmp_path / "nothing")})


def test_stages_beyond_the_recipe_are_shown_where_they_ran(folder, composed, tmp_path):
    assert "vocoder_finetune" not in (folder / "index.html").read_text("utf-8")
    exp_dir = tmp_path / "exp"
    for name in ("vocoder", "vocoder_finetune"):
        shutil.copytree(folder.parent / "vocoder", exp_dir / name)
        stamp = json.loads((exp_dir / name / "stamp.json").read_text())
        (exp_dir / name / "stamp.json").write_text(json.dumps({**stamp, "seconds": 120.0}))
    report.main(composed("report", f"exp_dir={exp_dir}"))
    page = (exp_dir / "report/index.html").read_text("utf-8")
    assert (
        "vocoder on the mels of tokenizer and flow" in page and "images/curves_vocoder_finetune.png" in page
    )
    assert "Not finished yet" in page and "dpo" not in page
    assert "<b>all stages</b>2.0 minutes" in page, "of the recipe's stages"
