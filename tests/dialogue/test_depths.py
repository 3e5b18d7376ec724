"""A tokenizer by number of books: what the frozen LLM reads, the table, the command."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from omniaudio.cli import evaluate
from omniaudio.cli.main import compose
from omniaudio.dialogue.depths import (
    DepthRow,
    Listeners,
    load_reader,
    score_depth,
    score_streaming,
    streaming_table,
    table,
    without_loops,
)
from omniaudio.dialogue.evaluation import choose_clips
from omniaudio.errors import UserError
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.training.artifacts import load_module
from tests.conftest import run_stage


def quiet(items, description):
    return items


@pytest.fixture(scope="module")
def reader(tiny_chain):
    tokenizer = tiny_chain / "tokenizer/final/tokenizer"
    return load_reader(
        tokenizer, tiny_chain / "text_lm/final/backbone", tiny_chain / "text_lm/tokenizer.json", "cpu"
    )


def test_the_readers_loss_is_that_of_one_long_document(reader):
    emb_SD = torch.randn(5, reader.align.in_features)
    ids = reader.text_tokenizer.encode("hold the line")
    asked = reader.text_tokenizer.encode("Écris ce qui est dit : ")
    total, count = reader.loss(emb_SD, "hold the line", "fr")
    assert count == len(ids) + 1
    with torch.inference_mode():
        prompt, written = (reader.llm.embed_text(torch.tensor(piece)) for piece in (asked, ids))
        embeds = torch.cat([prompt, reader.align(emb_SD), written])
        logits = reader.llm.lm_head(reader.llm(embeds, [len(embeds)]))
    wanted = sum(
        -logits[len(asked) + 4 + i].log_softmax(-1)[piece] for i, piece in enumerate([*ids, reader.space.eos])
    )
    assert total == pytest.approx(float(wanted), rel=1e-4)


def test_the_reader_is_asked_behind_bos(reader):
    begun = TokenSpace(reader.space.text_vocab_size, special_ids={**reader.space.special_ids, "bos": 2})
    assert replace(reader, space=begun)._prompt("fr") == [2, *reader._prompt("fr")]
    assert replace(reader, space=begun, prompts=False)._prompt("fr") == [2]


def test_the_transcript_is_what_the_whole_forward_finds_likeliest(reader):
    emb_SD = torch.randn(5, reader.align.in_features)
    text = reader.transcribe(emb_SD, "en", max_pieces=4)
    asked, ids = reader.text_tokenizer.encode("Write down what is said: "), []
    with torch.inference_mode():
        for _ in range(4):
            prompt, written = (
                reader.llm.embed_text(torch.tensor(piece, dtype=torch.int64)) for piece in (asked, ids)
            )
            embeds = torch.cat([prompt, reader.align(emb_SD), written])
            hidden = reader.llm(embeds, [len(embeds)])[-1]
            logits = reader.llm.lm_head(hidden)
            allowed = [*range(reader.space.text_vocab_size), reader.space.eos]
            best = allowed[int(logits[allowed].argmax())]
            if best == reader.space.eos:
                break
            ids.append(best)
    assert text == reader.text_tokenizer.decode(ids)


def test_the_transcript_ends_where_the_llm_says_so(reader):
    """The end stands after the text pieces in these vocabularies; it must be heard all the same."""
    steps = []

    class Head(torch.nn.Module):
        def forward(self, hidden_D):
            steps.append(1)
            logits_V = torch.zeros(reader.llm.vocab_size)
            logits_V[reader.space.eos if len(steps) == 3 else 5] = 9.0
            return logits_V

    assert reader.space.eos >= reader.space.text_vocab_size
    head, reader.llm.lm_head = reader.llm.lm_head, Head()
    try:
        text = reader.transcribe(torch.randn(5, reader.align.in_features), "en")
    finally:
        reader.llm.lm_head = head
    assert text == reader.text_tokenizer.decode([5, 5])


class Parrot:
    """A recogniser that heard everything but the first clip."""

    name, batch_size = "parrot", 2

    def __init__(self, texts):
        self.texts, self.rates = ["", *texts[1:]], []

    def transcribe(self, wavs, sample_rate_hz, languages):
        assert all(len(wav) > 1000 for wav in wavs)
        self.rates.append(sample_rate_hz)
        start = 2 * (len(self.rates) - 1)
        return self.texts[start : start + len(wavs)]


def test_a_row_holds_every_measure(tiny_chain, tiny_data, reader):
    clips = choose_clips(tiny_data / "shards", "test", 3)
    tokenizer = load_module(tiny_chain / "tokenizer/final/tokenizer")
    vocoder, judge = load_module(tiny_chain / "vocoder/final/vocoder"), Parrot([clip.text for clip in clips])
    row = score_depth(tokenizer, clips, 4, Listeners(reader=reader, vocoder=vocoder, judges=[judge]), quiet)
    assert row.name == "4 books" and row.mae > 0 and row.align_loss > 0
    first = len(clips[0].text.split())
    assert row.wer["parrot"] == pytest.approx(first / sum(len(clip.text.split()) for clip in clips))
    assert set(row.cer) == {"LLM", "parrot"} and set(judge.rates) == {24000}
    assert row.estoi is not None and -0.5 < row.estoi < 0.9, "two steps of training"
    assert score_depth(tokenizer, clips, 4, Listeners(), quiet).mae == row.mae
    spoken = score_depth(tokenizer, clips, 4, Listeners(vocoder=vocoder), quiet)
    assert spoken.estoi == pytest.approx(row.estoi, abs=1e-3) and not spoken.cer, "no judge is needed"
    with pytest.raises(UserError, match="depth 0: a tokenizer of 8 books"):
        score_depth(tokenizer, clips, 0, Listeners(), quiet)


def test_the_table_has_the_order_of_the_paper():
    rows = [DepthRow(depth=depth, mae=0.5 + depth) for depth in (1, 4, 0, 8)]
    rows[1].cer, rows[1].wer = {"whisper": 0.25}, {"whisper": 0.5}
    lines = table(rows)
    assert lines[0] == ["speech tokenizer", "mel MAE", "alignment, nats", "WER by whisper", "CER by whisper"]
    assert [line[0] for line in lines[1:]] == ["no VQ", "8 books", "4 books", "1 book"]
    assert lines[3] == ["4 books", "4.500", "-", "50.0 %", "25.0 %"] and lines[1][3:] == ["-", "-"]
    rows[1].estoi = 0.5
    lines = table(rows)
    assert lines[0][-1] == "ESTOI" and [line[-1] for line in lines[1:]] == ["-", "-", "0.500", "-"]


def test_clips_on_which_a_judge_loops_are_left_out_at_every_depth(tiny_data):
    clips = choose_clips(tiny_data / "shards", "test", 3)
    right = [clip.text for clip in clips]
    rows = [DepthRow(depth=depth, mae=0.5) for depth in (1, 8)]
    rows[0].heard = {"whisper": [right[0], "and so on " * 40, ""], "LLM": ["x " * 200] * 3}
    rows[1].heard = {"whisper": right, "LLM": right}
    rest, count = without_loops(rows, clips)
    assert count == 1 and [set(row.cer) for row in rest] == [{"whisper"}] * 2
    third = len(right[2].split()) / (len(right[0].split()) + len(right[2].split()))
    assert rest[0].wer["whisper"] == pytest.approx(third) and rest[1].wer["whisper"] == 0
    assert rest[0].heard["whisper"] == [right[0], ""]
    assert without_loops(rows[1:], clips)[1] == 0
    lines = table(rest, rates_only=True)
    assert lines[0] == ["speech tokenizer", "WER by whisper", "CER by whisper"], "the rest is of all clips"
    assert lines[1] == ["8 books", "0.0 %", "0.0 %"] and len(lines) == 3


def test_segments_against_the_whole(tiny_chain, tiny_data):
    """A segment that holds the whole clip gives its codes; a single frame without the rest gives others."""
    clips = choose_clips(tiny_data / "shards", "test", 2)
    tokenizer = load_module(tiny_chain / "tokenizer/final/tokenizer")
    whole = score_streaming(tokenizer, clips, 375, 0, quiet)
    assert whole.equal == [1.0] * 8 and whole.mae == whole.offline_mae and whole.delay_sec == 30.0
    single = score_streaming(tokenizer, clips, 1, 0, quiet)
    assert min(single.equal) < 1 and single.mae != single.offline_mae == whole.offline_mae
    lines = streaming_table([whole, single])
    assert (
        lines[0][:4] == ["segment / context, frames", "delay", "mel MAE", "offline"]
        and lines[0][-1] == "equal, book 8"
    )
    assert [line[:2] for line in lines[1:]] == [["375 / 0", "30.00 s"], ["1 / 0", "0.08 s"]]
    assert lines[1][4:] == ["100.0 %"] * 8


@pytest.mark.slow
def test_the_command_with_a_continuous_row(tiny_chain, tiny_data, tmp_path, capsys):
    exp_dir, other = tmp_path / "exp", tmp_path / "continuous"
    for folder in (exp_dir, other):
        folder.mkdir()
        (folder / "text_lm").symlink_to(tiny_chain / "text_lm")
    shutil.copytree(tiny_chain / "tokenizer", exp_dir / "tokenizer")
    run_stage("tokenizer", tiny_data, other, "quantizer=continuous")
    words = [
        "system=baichuan_audio",
        "scale=tiny",
        f"exp_dir={exp_dir}",
        f"data_dir={tiny_data}",
        "task=tokenizer",
    ]
    words += [
        "depths=[1,8]",
        "streaming=[[25,50]]",
        f"continuous={other}/tokenizer/final/tokenizer",
        "num_clips=2",
    ]
    evaluate.main(compose("evaluate", words))
    assert "| no VQ |" in capsys.readouterr().out
    table_lines = (exp_dir / "evaluate_tokenizer/table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table_lines[2:5]] == ["| no VQ", "| 8 books", "| 1 book"]
    assert [line.split(" | ")[0] for line in table_lines[8:]] == ["| 25 / 50"]
    record = json.loads((exp_dir / "evaluate_tokenizer/results.json").read_text())
    assert {row["depth"] for row in record["rows"]} == {0, 1, 8} and "task=tokenizer" in record["command"]
    evaluate.main(compose("evaluate", words))
    assert "done before" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"streaming: \[25\] is not \[segment, context\]"):
        evaluate.main(compose("evaluate", [*words, "streaming=[[25]]"]))
    with pytest.raises(UserError, match="'poem' is not one of all, tokenizer"):
        evaluate.main(compose("evaluate", [*words, "task=poem"]))
