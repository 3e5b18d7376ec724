from __future__ import annotations

import pytest

from omniaudio.errors import UserError, check_choice


def test_a_user_error_is_a_value_error_that_keeps_its_line():
    assert issubclass(UserError, ValueError)
    assert (
        str(UserError("encoder.width=7: must be divisible by 2")) == "encoder.width=7: must be divisible by 2"
    )


def test_a_choice_is_one_of_those_allowed():
    assert check_choice("flow.solver", "heun", {"euler": 1, "heun": 2}) == "heun"
    with pytest.raises(UserError, match=r"^flow.solver 'rk9': can be euler, heun$"):
        check_choice("flow.solver", "rk9", ("euler", "heun"))
