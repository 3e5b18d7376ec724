"""First audio and real-time factor by size of chunk."""

import itertools

import numpy as np
import pytest
import torch

from omniaudio.dialogue.latency import LatencyRow, latency_rows, latency_table, written_codes
from omniaudio.dialogue.model import SpokenLanguageModel


def test_rows_tell_when_the_first_sample_comes_and_how_far_it_is_from_the_whole(
    model: SpokenLanguageModel,
) -> None:
    ticks = itertools.count()
    codes_SK, frame_sec = written_codes(model, "hello", 30, lambda: float(next(ticks)))
    assert codes_SK.shape == (30, 3) and frame_sec > 0
    before = model.settings
    rows = latency_rows(model, codes_SK, 100.0, [5, 30], lambda: float(next(ticks)))
    assert model.settings is before
    assert [row.chunk_frames for row in rows] == [0, 5, 30]
    assert [row.first_sec // 100 for row in rows] == [30, 4, 4], (
        "the whole, and the four codes of the first chunk"
    )
    assert all(row.lm_factor == pytest.approx(1250) for row in rows)
    assert rows[1].mel_error > 0 and rows[1].worst > 0 and rows[1].seam > 0
    assert np.isfinite([row.factor for row in rows]).all()


def test_the_table_names_what_it_shows() -> None:
    rows = [
        LatencyRow(chunk_frames=0, first_sec=4.0, factor=0.1, lm_factor=0.2),
        LatencyRow(
            chunk_frames=12, first_sec=0.5, factor=0.3, lm_factor=0.2, mel_error=0.04, worst=0.02, seam=0.9
        ),
    ]
    head, whole, chunked = latency_table(rows, 0.08)
    assert len(head) == len(whole) == len(chunked)
    assert whole == ["whole", "4.00 s", "0.10", "0.30", "", "", ""]
    assert chunked == ["12 (0.96 s)", "0.50 s", "0.30", "0.50", "0.040", "0.02", "0.90"]


def test_a_model_that_ends_at_once_is_asked_again(
    model: SpokenLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, stream = [], written_codes.__globals__["Generator"].stream

    def short(self, prompt, form, generator):  # type: ignore[no-untyped-def]
        asked.append(generator.initial_seed())
        self.max_frames = min(self.max_frames, 4)
        return stream(self, prompt, form, generator)

    monkeypatch.setattr("omniaudio.lm.generate.Generator.stream", short)
    codes_SK, _ = written_codes(model, "hello", 10)
    assert codes_SK.shape == (10, 3) and asked[:3] == [0, 1, 2]
    assert torch.equal(written_codes(model, "hello", 10)[0], codes_SK)
