"""The README's table of faults names tests that there are, and nearly every test of this folder."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_promise_has_its_test_and_every_test_its_promise():
    table = (
        (TESTS.parent / "README.md")
        .read_text("utf-8")
        .partition("## What may go wrong")[2]
        .partition("\n## ")[0]
    )
    named = set(re.findall(r"([\w/]+\.py)::(test_\w+)", table))
    assert len(named) > 25
    for path, name in named:
        assert re.search(rf"^def {name}\(", (TESTS / path).read_text("utf-8"), re.MULTILINE), (
            f"{path}::{name}"
        )
    promised = {name for path, name in named if path.startswith("faults/")}
    there = set(
        re.findall(r"^def (test_\w+)\(", (TESTS / "faults" / "test_data.py").read_text("utf-8"), re.MULTILINE)
    )
    assert there >= promised
    missing = there - promised
    assert missing <= {
        "test_a_member_that_is_not_there_is_named",
        "test_a_column_that_only_other_shards_need_is_read_too",
        "test_a_tar_of_others_has_no_index_and_is_not_guessed",
        "test_control_characters_of_a_text_become_spaces",
        "test_an_address_that_is_a_command_is_a_file_that_is_not_there",
    }, f"not in the README's table: {sorted(missing)}"
