"""Tokenizer task: what two steps move, the schedules, and the alignment loss by hand."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from omniaudio.data.datamodule import StepData
from omniaudio.data.planning import PooledPlan
from omniaudio.encoders.augment import mask_time
from omniaudio.encoders.whisper import WhisperEncoder
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec
from omniaudio.frontend.text import TextTokenizer
from omniaudio.lm.backbone import CausalBackbone
from omniaudio.quantizers.bridge import ConvBridge
from omniaudio.quantizers.mel_decoder import MelDecoder
from omniaudio.quantizers.rvq import ResidualVQ
from omniaudio.quantizers.speech_tokenizer import SpeechTokenizer
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.tasks.tokenizer import Ramp, TokenizerTask
from omniaudio.training.balance import GradientBalance
from omniaudio.training.schedule import warmup_cosine
from omniaudio.types import WaveBatch

LOSSES = {
    "recon/coarse_fine": 1.0,
    "recon/coarse_wide": 0.5,
    "recon/refined_fine": 1.0,
    "recon/refined_wide": 0.5,
    "vq/commit": 1.0,
    "ce/align": 0.5,
}
TEXTS = TextTokenizer.train(["hello world", "good bye"], vocab_size=260)
SPACE = TokenSpace(TEXTS.vocab_size)


def make_tokenizer() -> SpeechTokenizer:
    return SpeechTokenizer(
        mel_spec=MelSpec(16000, 400, 160, 400, 16, 0.0, 8000.0, "whisper", True),
        decoder_mel_spec=MelSpec(16000, 1024, 256, 1024, 20, 0.0, 8000.0, "ln", True),
        encoder=WhisperEncoder(16, 8, 1, 2, 16, max_frames=100),
        bridge=ConvBridge(8),
        quantizer=ResidualVQ(32, [16, 8, 4]),
        decoder=MelDecoder(8, 20, 1, 2, 16, refine_width=8, max_frames=400),
    )


def make_task(**settings: Any) -> TokenizerTask:
    arguments: dict[str, Any] = {
        "text_tokenizer": TEXTS,
        "token_space": SPACE,
        "modules": {
            "tokenizer": make_tokenizer,
            "judge": lambda: CausalBackbone(SPACE.vocab_size, 16, 1, 2, 1, 32),
            "align": lambda: nn.Linear(8, 16),
        },
        "loss_weights": LOSSES,
        "optimizer": partial(torch.optim.AdamW, lr=0.01),
        "scheduler": partial(warmup_cosine, warmup_share=0.1, min_share=0.1),
        "trainable": ["*", "!judge.*"],
        "max_steps": 2,
    }
    return TokenizerTask(**{**arguments, **settings})


class Waves:
    """Two clips a step; the second is a crop without text."""

    def __init__(
        self, texts: tuple[str, str] = ("hello", ""), kinds: tuple[str, str] = ("asr", "asr")
    ) -> None:
        self.texts, self.kinds = list(texts), list(kinds)
        self.plan = PooledPlan([1.0] * 4, 1.0, seed=0)

    def batch(self, step: int, part: int, num_parts: int) -> WaveBatch:
        wav_BN = torch.randn(2, 16000, generator=torch.Generator().manual_seed(step)) * 0.1
        wav_BN[1, 9000:] = 0
        num_samples_B = torch.tensor([16000, 9000])
        return WaveBatch(
            keys=["a", "b"], wav_BN=wav_BN, num_samples_B=num_samples_B, sample_rate_hz=16000,
            kinds=self.kinds, texts=self.texts, languages=["en", "es"],
        )  # fmt: skip


def fit(folder: Path, task: TokenizerTask, waves: Waves, steps: int = 2) -> None:
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=folder, val_check_interval=steps,
        check_val_every_n_epoch=None, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, StepData(lambda: waves, lambda: waves, max_steps=steps, val_steps=1))
    stats = {f"train/{name}": value for name, value in {**task.stats, **task.whole.losses}.items()}
    task.seen = {**trainer.callback_metrics, **stats}  # type: ignore[assignment]


def test_two_steps_move_all_but_the_judge(tmp_path: Path) -> None:
    task = make_task()
    task.configure_model()
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    fit(tmp_path, task, Waves())
    still = {name for name, p in task.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if name.startswith("judge.")}
    assert all(p.grad is None for p in task.judge.parameters())
    assert not task.judge.training
    seen: dict[str, Tensor] = task.seen  # type: ignore[assignment]
    for split in ("train", "val"):
        assert {
            f"{split}/{name}" for name in [*LOSSES, "vq/usage/book0", "vq/perplexity/book2"]
        } <= seen.keys()
    assert seen["val/vq/replaced_share"] == 1
    assert float(seen["train/vq/replaced_share"]) == pytest.approx(1.0)  # after step 2 of 2


def test_a_batch_without_text_trains_too(tmp_path: Path) -> None:
    task = make_task()
    fit(tmp_path, task, Waves(("", " ")), steps=1)
    assert task.seen["train/ce/align"] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("prompts", "asked", "bos"),
    [
        (False, ("", ""), None),
        (False, ("", ""), 2),
        (True, ("Translate the speech: ", "Escribe lo que se dice: "), 2),
        (True, ("Translate the speech: ", "Escribe lo que se dice: "), None),
    ],
)
def test_alignment_is_the_judges_cross_entropy_after_the_embeddings(prompts, asked, bos) -> None:
    task = make_task(prompts=prompts)
    task.token_space = TokenSpace(SPACE.text_vocab_size, special_ids={**SPACE.special_ids, "bos": bos})
    task.configure_model()
    emb_BSD = torch.randn(2, 5, 8, requires_grad=True)
    batch = Waves(("hello world", "good bye"), ("s2tt", "asr")).batch(0, 0, 1)
    term = task._alignment(batch, emb_BSD, torch.tensor([5, 3]), torch.tensor([True, True]))
    total, count = 0.0, 0
    for row, num_frames in enumerate([5, 3]):
        prompt = [*task.token_space.beginning, *(TEXTS.encode(asked[row]) if asked[row] else [])]
        ids = [*TEXTS.encode(batch.texts[row]), SPACE.eos]
        embeds = [task.align(emb_BSD[row, :num_frames]), task.judge.embed_text(torch.tensor(ids[:-1]))]
        if prompt:
            embeds.insert(0, task.judge.embed_text(torch.tensor(prompt)))
        embeds_LD = torch.cat(embeds)
        log_LV = task.judge.lm_head(task.judge(embeds_LD, [len(embeds_LD)])).log_softmax(-1)
        for i, token in enumerate(ids):
            total -= float(log_LV[len(prompt) + num_frames - 1 + i, token].detach())
            count += 1
    assert float(term.total) == pytest.approx(total, rel=1e-5)
    assert int(term.count) == count
    term.total.backward()
    assert emb_BSD.grad is not None
    assert (emb_BSD.grad.abs().sum(-1) > 0).tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_a_clip_has_the_same_masks_in_a_step_whatever_its_batch(monkeypatch) -> None:
    """Second of the step's only batch, or first of its second one; another step masks other frames."""
    found: list[Tensor] = []

    def masked(mel_BMT: Tensor, *args: Any) -> Tensor:
        found.append(mask_time(torch.ones_like(mel_BMT), *args)[:, 0])
        return mel_BMT

    monkeypatch.setattr("omniaudio.tasks.tokenizer.mask_time", masked)
    both = Waves().batch(0, 0, 1)
    second = dataclasses.replace(
        both, keys=["b"], wav_BN=both.wav_BN[1:], num_samples_B=both.num_samples_B[1:],
        kinds=["asr"], texts=[""], languages=["es"],
    )  # fmt: skip
    for accumulate, batches_seen, batch in ((1, 3, both), (2, 6, second), (1, 4, both)):
        task = make_task(accumulate=accumulate, mask_share=0.9)
        task.configure_model()
        task.log_stats = lambda *_: None  # type: ignore[method-assign]
        task.batches_seen = batches_seen
        task.losses(batch, "train")
    num_frames = 9000 // 160
    one, other, later = (rows[-1, :num_frames] for rows in found)
    assert torch.equal(one, other) and not torch.equal(one, later) and 0 < float(one.mean()) < 1


def test_the_judge_hears_a_share_of_the_clips_of_training_and_all_that_are_held_out(monkeypatch) -> None:
    heard: list[list[bool]] = []
    task = make_task(judged_share=0.5)
    task.configure_model()
    task.log_stats = lambda *_: None  # type: ignore[method-assign]
    alignment = task._alignment
    monkeypatch.setattr(
        task,
        "_alignment",
        lambda b, e, n, judged_B: heard.append(judged_B.tolist()) or alignment(b, e, n, judged_B),
    )
    batch = Waves(("hello", "good bye")).batch(0, 0, 1)
    for task.batches_seen in range(20):
        term = task.losses(batch, "train")["ce/align"]
        texts = [text for text, judged in zip(batch.texts, heard[-1], strict=True) if judged]
        assert int(term.count) == sum(len(TEXTS.encode(text)) + 1 for text in texts)
    assert {tuple(judged) for judged in heard} == {(True, False), (False, True)}, (
        "one of two, now this, now that"
    )
    task.losses(batch, "val")
    assert heard[-1] == [True, True]
    with pytest.raises(UserError, match=r"task.judged_share 0: above 0, at most 1"):
        make_task(judged_share=0)


def test_what_counts_is_known_before_the_model_has_seen_it() -> None:
    """Also of clips shorter than a wide frame, of silence, and of those that the judge does not hear."""
    task = make_task(judged_share=0.5)
    task.configure_model()
    task.log_stats = lambda *_: None  # type: ignore[method-assign]
    for task.batches_seen, second in enumerate((9000, 1700, 700), 1):
        batch = Waves(("hello", "good bye")).batch(0, 0, 1)
        batch.num_samples_B[1] = second
        counts = {name: int(term.count) for name, term in task.losses(batch, "train").items()}
        assert task.counted(batch, task.batches_seen) == counts


def test_a_sharded_judge_is_asked_by_every_rank(monkeypatch) -> None:
    """Under ZeRO 3 a rank without words must use the judge as often as the others; it counts nothing."""
    task = make_task()
    task.configure_model()
    asked: list[int] = []
    forward = type(task.judge).forward
    monkeypatch.setattr(
        type(task.judge), "forward", lambda self, *arguments: asked.append(1) or forward(self, *arguments)
    )
    emb_BSD, silent = torch.randn(2, 5, 8, requires_grad=True), Waves(("", " ")).batch(0, 0, 1)
    for sharded in (False, True):
        if sharded:
            next(task.judge.parameters()).ds_id = 0  # type: ignore[attr-defined]
        term = task._alignment(silent, emb_BSD, torch.tensor([5, 3]), torch.tensor([True, True]))
        assert float(term.total) == 0 and term.count == 0 and len(asked) == sharded
    term.total.backward()
    assert emb_BSD.grad is not None and not emb_BSD.grad.any()


def test_ramps_by_hand() -> None:
    ramp = Ramp(0.1, 1.0, begins=0.2, ends=0.6)
    assert [round(ramp.at(p), 4) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == [0.1, 0.1, 0.55, 1.0, 1.0]
    with pytest.raises(UserError, match="ramp"):
        Ramp(0.1, 1.0, begins=0.5, ends=0.5)


def test_another_sample_rate_is_refused() -> None:
    task = make_task()
    task.configure_model()
    batch = Waves().batch(0, 0, 1)
    batch.sample_rate_hz = 24000
    with pytest.raises(UserError, match="24000 Hz"):
        task.losses(batch, "train")


def test_what_is_logged_is_the_loss_and_its_ramp_weighs_it(tmp_path: Path) -> None:
    """vq/commit is logged as it is; in the sum it counts with its ramp, which begins at 0."""
    task = make_task(commit_scale=Ramp(0.0, 1.0), max_steps=1)
    fit(tmp_path, task, Waves(), steps=1)
    assert task.seen["train/vq/commit"] > 0
    scale = task.seen["train/vq/commit_scale"]
    weights = {**LOSSES, "vq/commit": LOSSES["vq/commit"] * scale}
    total = sum(weight * float(task.seen[f"train/{name}"]) for name, weight in weights.items())
    assert float(task.seen["train/loss"]) == pytest.approx(total, rel=1e-5)


def test_gradient_norms_are_logged_when_due_and_change_nothing(tmp_path: Path) -> None:
    plain, measured = make_task(), make_task(balance=GradientBalance(["tokenizer.encoder.*"], every_steps=2))
    for name, task in (("plain", plain), ("measured", measured)):
        fit(tmp_path / name, task, Waves())
    norms = {name.removeprefix("train/grad_norm/") for name in measured.seen if "grad_norm/" in name}
    norms = {name for name in norms if not name.startswith("part/")}
    assert norms == set(LOSSES)
    assert all(measured.seen[f"train/grad_norm/{name}"] > 0 for name in LOSSES)
    for ours, theirs in zip(plain.parameters(), measured.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_balanced_weights_come_from_the_first_step_on(tmp_path: Path) -> None:
    task = make_task(balance=GradientBalance(["tokenizer.encoder.*"], equalise=True))
    fit(tmp_path, task, Waves())
    assert set(task.balance.norms) == set(LOSSES)
    given = {**LOSSES, "vq/commit": LOSSES["vq/commit"] * float(task.seen["train/vq/commit_scale"])}
    pulls = [
        task.seen[f"train/weight/{name}"] * norm / given[name] for name, norm in task.balance.norms.items()
    ]
    assert max(pulls) == pytest.approx(min(pulls), rel=1e-4)


def test_norms_that_cannot_be_measured_end_only_a_balanced_training(tmp_path: Path) -> None:
    told: list[str] = []
    task = make_task(balance=GradientBalance(["nothing.*"], every_steps=1))
    task.tell = told.append
    fit(tmp_path / "watched", task, Waves())
    assert len(told) == 1 and "match no trained parameter; they are not measured" in told[0]
    with pytest.raises(UserError, match="match no trained parameter"):
        fit(tmp_path / "balanced", make_task(balance=GradientBalance(["nothing.*"], equalise=True)), Waves())


def test_a_collapsed_book_is_named_once_with_the_remedy() -> None:
    task = make_task()
    task.configure_model()
    told: list[str] = []
    task.tell = told.append
    healthy = {"usage": 0.9, "perplexity": 5.0, "explained": 0.4}

    def look(**second: float) -> None:
        task.stats = {
            f"vq/{name}/book{book}": ({**healthy, "explained": 0.6, **second} if book else healthy)[name]
            for name in healthy
            for book in range(2)
        }
        task._check_health()

    look()
    assert task.note() == "books used 90 90 %" and not told
    look(usage=0.05)
    look(usage=0.05)
    assert len(told) == 1 and "book 2 of 3: 5% of its 8 codes" in told[0]
    look()
    look(usage=0.05)
    assert len(told) == 2, "a book that recovered is named again"
