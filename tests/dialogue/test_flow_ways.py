"""Names of the ways to solve flow matching, and what is none."""

from typing import Any

import pytest

from omniaudio.dialogue.flow_ways import FlowWays, way_name
from omniaudio.errors import UserError


def test_each_number_of_steps_with_each_of_what_is_named() -> None:
    assert FlowWays().variants() == {}
    assert FlowWays(flow_steps=[1, 4]).variants() == {f"flow_{num}": {"flow_steps": num} for num in (1, 4)}
    ways = FlowWays(
        flow_steps=[1, 4], flow_solvers=["heun"], flow_warps=["logit_normal"], flow_guidances=[0, 0.7]
    )
    asked = {"flow_solver": "heun", "flow_warp": "logit_normal"}
    assert ways.variants() == {
        f"flow_{num}_heun_logit-normal_guidance{guidance}": {
            "flow_steps": num, **asked, "flow_guidance": guidance,
        }
        for guidance in (0, 0.7) for num in (1, 4)
    }  # fmt: skip
    assert [way_name(variant) for variant in list(ways.variants())[1:3]] == [
        "4 steps of heun, logit-normal times, guidance 0",
        "1 step of heun, logit-normal times, guidance 0.7",
    ]
    assert way_name("flow_1") == "1 step" and way_name("flow_2_uniform") == "2 steps, uniform times"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"flow_solvers": "heun"}, "flow_solvers: heun is not a list of euler, midpoint, heun"),
        ({"flow_warps": ["sine"]}, r"flow_warps: \['sine'\] is not a list of cosine, uniform, logit_normal"),
        ({"flow_guidances": [-0.5]}, r"flow_guidances: \[-0.5\] is not a list of numbers, each at least 0"),
        ({"flow_guidances": ["much"]}, "flow_guidances: .* each at least 0"),
        ({"flow_guidances": [float("nan")]}, "flow_guidances: .* each at least 0"),
        ({"flow_guidances": [True]}, "flow_guidances: .* each at least 0"),
        ({"flow_guidances": [0], "flow_steps": []}, r"flow_guidances: \[0\] without steps; say how many"),
        ({"flow_warps": ["uniform"], "flow_steps": []}, "flow_warps: .* without steps; say how many"),
    ],
)
def test_what_is_none_is_one_line(named: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"config {expected}"):
        FlowWays(**{"flow_steps": [1], **named})
