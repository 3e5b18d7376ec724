"""Slots for speaker and prompt: nothing without them, what an item is told in training, speakers that are heard."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from omniaudio.acoustic.dit import ConditionalDiT
from omniaudio.acoustic.estimator import Estimator
from omniaudio.acoustic.timbre import Timbre, mel_statistics
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.errors import UserError
from tests.acoustic.test_flow_matching import new_flow


def new_estimator(kind: str, timbre: Timbre | None) -> Estimator:
    if kind == "unet":
        return ConditionalUNet(4, 8, 1, 1, 2, 4, 16, timbre=timbre)
    return ConditionalDiT(4, 8, 1, 2, 16, 16, timbre=timbre)


def test_without_a_slot_there_is_nothing() -> None:
    timbre, mu, draws = Timbre(4), torch.randn(2, 4, 5), torch.Generator().manual_seed(0)
    before = draws.get_state()
    prompt_len_B, told_B = timbre.draw(torch.tensor([5, 3]), draws)
    assert torch.equal(draws.get_state(), before), "the draws of other trainings stay what they are"
    assert not prompt_len_B.any() and not told_B.any()
    assert torch.equal(timbre(mu), mu) and not timbre.state_dict()


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_slots_change_no_name_and_only_the_widths_of_what_comes_in(kind: str) -> None:
    names, widths = [], []
    for timbre in (None, Timbre(4, prompt=True), Timbre(4, 3), Timbre(4, 3, True)):
        estimator = new_estimator(kind, timbre)
        names.append({name for name in estimator.state_dict() if not name.startswith("timbre.")})
        widths.append(estimator.in_width)
    assert widths == [8, 12, 12, 16] and all(found == names[0] for found in names)
    assert "timbre.speaker_proj.weight" in estimator.state_dict()


def test_an_item_is_told_its_share() -> None:
    timbre, length_B = Timbre(4, 3, True, 0.3, 0.6, 0.25), torch.full((4000,), 1000)
    prompt_len_B, told_B = timbre.draw(length_B, torch.Generator().manual_seed(0))
    shown_B = prompt_len_B > 0
    assert shown_B.float().mean() == pytest.approx(0.6, abs=0.03)
    assert prompt_len_B.max() < 250 and prompt_len_B[shown_B].float().mean() == pytest.approx(125, abs=5)
    assert told_B.float().mean() == pytest.approx(0.3, abs=0.03)
    assert (told_B & shown_B).float().mean() == pytest.approx(0.18, abs=0.03), "one does not tell the other"
    assert not Timbre(4, 3).draw(length_B, None)[0].any()


def test_statistics_by_hand() -> None:
    mel = torch.tensor([[[1.0, 3.0, 100.0], [2.0, 2.0, 100.0]], [[0.0, 3.0, 6.0], [1.0, 1.0, 1.0]]])
    expected = torch.tensor([[2.0, 2.0, 1.0, 0.0], [3.0, 1.0, 6**0.5, 0.0]])
    torch.testing.assert_close(mel_statistics(mel, torch.tensor([2, 3])), expected)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_another_speaker_has_another_mel(kind: str) -> None:
    """Two voices say the same words; only the vector tells them apart."""
    flow = new_flow(new_estimator(kind, Timbre(4, 2, speaker_share=1.0)), drop_condition=0.0)
    hidden, length_B, speaker_BS = torch.randn(1, 4, 6).expand(8, -1, -1), torch.full((8,), 4), torch.eye(2)
    mel = torch.tensor([1.5, -1.5]).repeat(4)[:, None, None].expand(8, 4, 4)
    optimizer: Any = torch.optim.AdamW(flow.parameters(), lr=0.01)
    draws = torch.Generator().manual_seed(0)
    for _ in range(80):
        terms = flow.losses(hidden, length_B, mel, length_B, draws, speaker_BS=speaker_BS.repeat(4, 1))
        optimizer.zero_grad()
        sum(total / count for total, count in terms.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    made, _ = flow.decode(hidden[:2], length_B[:2], 4, 0.0, generator=draws, speaker_BS=speaker_BS)
    assert made[0].mean() > 0.7 and made[1].mean() < -0.7


def test_mistakes_are_one_line() -> None:
    mu = torch.zeros(1, 4, 5)
    with pytest.raises(
        UserError, match="vector of 7 numbers; this flow was made with timbre.speaker_width=0"
    ):
        Timbre(4)(mu, torch.zeros(1, 7))
    with pytest.raises(UserError, match="a prompt, but this flow was made with timbre.prompt=false"):
        Timbre(4, 3)(mu, None, mu)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"speaker_width": -1}, "timbre.speaker_width -1: at least 0"),
        ({"prompt_share": 1.5}, "timbre.prompt_share 1.5: from 0 to 1"),
        ({"max_prompt": 1.0}, "timbre.max_prompt 1: from 0 to less than 1"),
    ]
    for words, message in wrong:
        with pytest.raises(UserError, match=message):
            Timbre(4, **words)
    with pytest.raises(UserError, match="timbre.num_mels is 5, flow.estimator.num_mels 4"):
        new_estimator("unet", Timbre(5))
