import math

import pytest

from omniaudio.corpus.build.segment import Gate, Segment, device_for
from omniaudio.errors import UserError


def test_a_gate_tells_why_and_where_to():
    segments = [Segment(key=str(v), passage="p", scores={"cer": v}) for v in (0.0, 0.2, 0.21, math.nan)]
    judged = Gate("cer", most=0.2, goes_to="asr")(segments)
    assert [(s.fault, s.goes_to) for s in judged] == [("", ""), ("", ""), *[("cer over 0.2", "asr")] * 2]
    assert [s.fault for s in Gate("cer", least=0.1)(segments)] == ["cer under 0.1", "", "", "cer under 0.1"]


def test_a_score_that_no_step_gave_is_an_error():
    with pytest.raises(UserError, match="no step before it gives this score"):
        Gate("mos", least=1)([Segment(key="a", passage="p")])


def test_segments_are_not_changed():
    segment = Segment(key="a", passage="p")
    assert segment.scored(x=1.0).scores == {"x": 1.0} and segment.scores == {} and segment.duration_sec == 0
    assert segment.refused("no").fault == "no" and segment.fault == ""


def test_models_run_on_a_gpu_where_there_is_one(monkeypatch):
    for found, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda found=found: found)
        assert device_for(None) == device and device_for("cpu") == "cpu"
    with pytest.raises(UserError, match="device=cuda:1: torch .* sees no GPU; use device=cpu"):
        device_for("cuda:1")
