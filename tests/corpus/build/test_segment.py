import math

import pytest

from omniaudio.corpus.build.segment import Gate, Segment
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
