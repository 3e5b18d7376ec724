"""The transcript after the speech, as the LLM expects it."""

import pytest
import torch

from omniaudio.lm.backbone import CausalBackbone
from omniaudio.losses.alignment import transcript_loss


@pytest.fixture
def llm() -> CausalBackbone:
    torch.manual_seed(0)
    return CausalBackbone(20, 8, 2, 2, 1, 16)


def test_packed_items_give_the_sum_of_each_by_hand(llm: CausalBackbone) -> None:
    heard, pieces = [torch.randn(3, 8), torch.randn(1, 8)], [[4, 5, 6], [7]]
    total, count = transcript_loss(llm, heard, pieces)
    wanted = 0.0
    for heard_SD, ids in zip(heard, pieces, strict=True):
        embeds_LD = torch.cat([heard_SD, llm.embed_text(torch.tensor(ids))])
        log_share_LV = llm.lm_head(llm(embeds_LD, [len(embeds_LD)])).log_softmax(-1)
        wanted -= sum(float(log_share_LV[len(heard_SD) - 1 + i, piece]) for i, piece in enumerate(ids))
    assert count == 4 and float(total) == pytest.approx(wanted, rel=1e-5)


def test_a_prompt_is_read_and_not_judged(llm: CausalBackbone) -> None:
    heard_SD, prompt, ids = torch.randn(3, 8), [9, 10], [4, 5]
    total, count = transcript_loss(llm, [heard_SD], [ids], [prompt])
    embeds_LD = torch.cat([llm.embed_text(torch.tensor(prompt)), heard_SD, llm.embed_text(torch.tensor(ids))])
    log_share_LV = llm.lm_head(llm(embeds_LD, [len(embeds_LD)])).log_softmax(-1)
    assert count == 2
    assert float(total) == pytest.approx(-float(log_share_LV[4, 4] + log_share_LV[5, 5]), rel=1e-5)


def test_gradients_reach_all_of_the_speech(llm: CausalBackbone) -> None:
    heard_SD = torch.randn(3, 8, requires_grad=True)
    transcript_loss(llm, [heard_SD], [[4, 5]])[0].backward()
    assert heard_SD.grad is not None and (heard_SD.grad.abs().sum(-1) > 0).all()
