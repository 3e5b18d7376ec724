import pytest
import torch

from omniaudio.training.whole_step import WholeStep, over_ranks

CPU = torch.device("cpu")
PARTS = [({"a": 30.0, "b": 0.0}, {"a": 2.0, "b": 0.0}), ({"a": 10.0, "b": 4.0}, {"a": 6.0, "b": 5.0})]
"""Counts and means of two batches: the mean of all is 3 of a and 5 of b."""


def test_batches_count_as_much_as_they_hold():
    step = WholeStep(2)
    step.plan([counts for counts, _ in PARTS], CPU)
    for counts, means in PARTS:
        assert not step.complete
        step.add(step.weighed({name: torch.tensor(mean) for name, mean in means.items()}, counts))
    assert step.complete and {name: float(loss) for name, loss in step.losses.items()} == {"a": 3.0, "b": 5.0}


def test_a_step_of_one_batch_is_that_batch():
    step, loss = WholeStep(1), torch.tensor(0.1)
    assert step.weighed({"a": loss}, {"a": 7.0})["a"] is loss and step.complete
    step.add({"a": loss})
    assert torch.equal(step.losses["a"], loss)


def test_counts_that_are_not_as_planned_end_the_step_before_it_is_learned_from():
    step = WholeStep(2)
    step.plan([counts for counts, _ in PARTS], CPU)
    step.weighed({"a": torch.tensor(2.0), "b": torch.tensor(0.0)}, PARTS[0][0])
    with pytest.raises(AssertionError, match=r"41\.0.*40\.0"):
        step.weighed({"a": torch.tensor(2.0), "b": torch.tensor(0.0)}, {"a": 11.0, "b": 4.0})


def test_sums_of_batches_with_other_names_add_up():
    step = WholeStep(2)
    step.add_sums({"asr": (torch.tensor(3.0), torch.tensor(2))})
    step.add_sums({"asr": (torch.tensor(5.0), torch.tensor(6)), "tts": (torch.tensor(1.0), torch.tensor(4))})
    step.add_sums({"text": (torch.tensor(0.0), torch.tensor(0))})
    assert over_ranks(step.sums) == {"asr": (8.0, 8.0), "tts": (1.0, 4.0)}
