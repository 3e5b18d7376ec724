from __future__ import annotations

from omniaudio.errors import UserError


def test_a_user_error_is_a_value_error_that_keeps_its_line():
    assert issubclass(UserError, ValueError)
    assert (
        str(UserError("encoder.width=7: must be divisible by 2")) == "encoder.width=7: must be divisible by 2"
    )
