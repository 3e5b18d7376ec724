import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from omniaudio.errors import UserError
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.sequence.spans import DocumentLayouts, pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.tasks.language_model import AudioLMTask, TextLMTask, normalised_book_weights
from omniaudio.types import NO_LABEL
from tests.tasks import accumulate_run

ROOT = Path(__file__).parents[2]
LOGGED = {"train/loss", "train/ce/text", "train/ce/audio/book2", "train/ce/text/text", "train/ce/audio/tts"}
SPACE = TokenSpace(40, [6, 4, 3])
COMMON = {"optimizer": torch.optim.AdamW, "scheduler": None, "trainable": ["*"]}


def make_backbone():
    return CausalBackbone(SPACE.vocab_size, 16, 1, 2, 1, 24)


def make_lm():
    return AudioLM(make_backbone(), AudioHead(16, [6, 4, 3], num_layers=1, head_dim=8), SPACE)


def documents():
    layouts, codes = DocumentLayouts(SPACE), np.array([[1, 2, 0], [5, 3, 2]])
    return [
        layouts.tts("a", [1, 2], codes),
        layouts.asr("b", [3], codes, [4, 5]),
        layouts.text("c", [6, 7, 8]),
    ]


def audio_task(**changes):
    arguments = {**COMMON, "loss_weights": {"ce/text": 1.0, "ce/audio": 1.0}, **changes}
    task = AudioLMTask(modules={"lm": make_lm}, **arguments)
    task.configure_model()
    task.logged = {}
    task.log_stats = lambda stats, split="train": task.logged.update(stats)
    return task.eval()


def test_a_training_tells_of_frozen_special_tokens_that_are_alike(monkeypatch, capsys):
    audio_task(trainable=["lm.audio_head.*"])
    assert not capsys.readouterr().out
    lm = make_lm()
    lm.backbone.lm_head.weight.data[SPACE.eos] = lm.backbone.lm_head.weight.data[SPACE.audiogen_start]
    monkeypatch.setattr(sys.modules[__name__], "make_lm", lambda: lm)
    audio_task(trainable=["lm.audio_head.*"])
    assert (
        "warning: lm.backbone.lm_head: the rows of audiogen_start and eos are nearly one"
        in capsys.readouterr().out
    )
    audio_task()
    assert not capsys.readouterr().out


def test_text_task_is_the_mean_over_labels():
    task = TextLMTask(modules={"backbone": make_backbone}, loss_weights={"ce/text": 1.0}, **COMMON)
    task.configure_model()
    batch = pack(documents()[2:])
    term = task.losses(batch, "train")["ce/text"]
    logits = task.backbone.lm_head(task.backbone(task.backbone.embed_text(batch.ids_L), [4]))
    assert_close(term.total / term.count, torch.nn.functional.cross_entropy(logits[:3], batch.ids_L[1:]))


def test_audio_loss_weighs_books():
    task, batch = audio_task(book_weights=[2.0, 1.0, 1.0]), pack(documents())
    output = task.lm(batch)
    terms = task.losses(batch, "train")
    wanted = (output.audio_loss_LK * torch.tensor([0.5, 0.25, 0.25])).sum()
    assert_close(terms["ce/audio"].total, wanted)
    assert terms["ce/audio"].count == 3
    assert terms["ce/text"].count == (batch.text_label_L != NO_LABEL).sum()


def test_default_book_weights_halve():
    assert_close(normalised_book_weights(None, 3), torch.tensor([4.0, 2.0, 1.0]) / 7)
    with pytest.raises(UserError, match="2 weights for 3 books"):
        normalised_book_weights([1, 1], 3)


def test_sums_and_counts_of_parts_add_up():
    task = audio_task()
    whole = task.losses(pack(documents()), "train")
    parts = [task.losses(pack([document]), "train") for document in documents()]
    for name in ("ce/text", "ce/audio"):
        assert_close(whole[name].total, sum(part[name].total for part in parts))
        assert whole[name].count == sum(part[name].count for part in parts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training of one process whose steps are one batch."""
    folder = tmp_path_factory.mktemp("whole")
    accumulate_run.fit(accumulate_run.make_task(1), accumulate_run.UnevenSteps, folder)
    return folder


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing_however_uneven_the_batches_are(whole, tmp_path, accumulate):
    accumulate_run.fit(accumulate_run.make_task(accumulate), accumulate_run.UnevenSteps, tmp_path)
    accumulate_run.check_equal(tmp_path, whole, LOGGED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "accumulate"), [("ddp", 1), ("ddp", 2), ("zero2", 2), ("zero3", 1), ("zero3", 2)]
)
def test_two_processes_accumulate_to_the_training_of_one(whole, tmp_path, strategy, accumulate):
    words = [
        sys.executable,
        "-m",
        "tests.tasks.accumulate_run",
        strategy,
        "2",
        str(accumulate),
        str(tmp_path),
    ]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-2000:]
    accumulate_run.check_equal(tmp_path, whole, LOGGED)


def test_what_counts_is_known_before_the_model_has_seen_it():
    task, batch = audio_task(), pack(documents())
    text = TextLMTask(modules={"backbone": make_backbone}, loss_weights={"ce/text": 1.0}, **COMMON)
    text.configure_model()
    for task_of in (task, text):
        counts = {name: term.count for name, term in task_of.losses(batch, "train").items()}
        assert task_of.counted(batch, 1) == counts


def test_kinds_and_books_are_logged():
    task = audio_task()
    task.losses(pack(documents()), "train")
    books = {f"ce/audio/book{book}" for book in range(3)}
    assert task.logged.keys() == books | {"ce/text/tts", "ce/audio/tts", "ce/text/asr", "ce/text/text"}
    alone = task.losses(pack(documents()[1:2]), "train")["ce/text"]
    task.losses(pack(documents()), "train")
    assert_close(task.logged["ce/text/asr"], alone.total.detach() / alone.count)


def test_held_out_losses_by_kind_are_means_over_their_positions():
    """One transcript of 2 and one of 10 pieces in two steps: the mean over 12, not the mean of two means."""
    task, layouts = audio_task(), DocumentLayouts(SPACE)
    sums: dict[str, list[float]] = {}

    def log(values, sync, weight):
        for name, value in values.items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0], total[1] = total[0] + float(value) * weight, total[1] + weight

    task._log, task._trainer = log, SimpleNamespace(world_size=1)
    codes = np.array([[1, 2, 0]])
    steps = [pack([layouts.asr("a", [3], codes, [4] * count)]) for count in (1, 9)]
    terms = [task.losses(batch, "val")["ce/text"] for batch in steps]
    total, count = sums["val/ce/text/asr"]
    assert count == sum(int(term.count) for term in terms) > 10
    assert total / count == pytest.approx(float(sum(term.total.detach() for term in terms)) / count)


@functools.cache
def one_batch():
    return pack(documents())


def test_first_stage_moves_only_embeddings_and_head():
    task = audio_task(trainable=["lm.audio_embed.*", "lm.audio_head.*"])
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(term.total / term.count for term in task.losses(one_batch(), "train").values()).backward()
        optimizer.step()
    moved = {name for name, p in task.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n in before if n.startswith(("lm.audio_embed", "lm.audio_head"))}


def test_it_learns_one_batch():
    task = audio_task()
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(term.total / term.count for term in task.losses(one_batch(), "train").values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
