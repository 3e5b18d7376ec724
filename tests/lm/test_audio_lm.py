import numpy as np
import pytest
import torch
from torch.testing import assert_close

from omniaudio.errors import UserError
from omniaudio.lm.audio_head import AudioHead
from omniaudio.lm.audio_lm import AudioLM, indistinct_specials
from omniaudio.lm.backbone import CausalBackbone, GemmaBackbone
from omniaudio.sequence.spans import DocumentLayouts, pack
from omniaudio.sequence.vocab import TokenSpace
from omniaudio.types import NO_LABEL

SIZES = (6, 4, 3)
SPACE = TokenSpace(40, SIZES)


def make(kind=CausalBackbone, **changes):
    torch.manual_seed(0)
    backbone = kind(SPACE.vocab_size, 16, 2, 2, 1, 24)
    return AudioLM(backbone, AudioHead(16, SIZES, num_layers=1, head_dim=8), SPACE, **changes)


def batch():
    layouts, codes = DocumentLayouts(SPACE), np.array([[1, 2, 0], [5, 3, 2]])
    return pack([layouts.tts("a", [1, 2], codes), layouts.asr("b", [3], codes[:1], [4, 5])])


def test_frames_are_sums_of_their_books():
    lm = make()
    codes = torch.tensor([[1, 2, 0], [6, 4, 3]])
    wanted = sum(lm.audio_embed[k].weight[codes[:, k]] for k in range(3))
    assert_close(lm.embed_frames(codes), wanted)
    ids = torch.tensor([7, SPACE.audio_pad, 8, SPACE.audio_pad])
    embeds = lm.embed(ids, torch.tensor([[5, 3, 2], [1, 2, 0], [0, 0, 0], [6, 4, 3]]))
    assert_close(embeds[[1, 3]], wanted)
    assert_close(embeds[[0, 2]], lm.backbone.embed_tokens.weight[[7, 8]])


@pytest.mark.parametrize("kind", [CausalBackbone, GemmaBackbone])
def test_a_frame_begins_with_the_size_of_a_text_embedding(kind):
    """Also where the backbone scales its embeddings."""
    lm = make(kind)
    text_LD = lm.backbone.embed_text(torch.arange(SPACE.vocab_size))
    frames_SD = lm.embed_frames(torch.cartesian_prod(*(torch.arange(size) for size in SIZES)))
    assert 0.7 < frames_SD.std() / text_LD.std() < 1.4


def test_losses_equal_full_logits():
    lm, data = make().eval(), batch()
    output = lm(data)
    log_probs = lm.backbone.lm_head(output.hidden_LD).log_softmax(1)
    for position, label in enumerate(data.text_label_L.tolist()):
        wanted = 0 if label == NO_LABEL else -log_probs[position, label]
        assert_close(output.text_loss_L[position], torch.as_tensor(wanted, dtype=torch.float32))
    rows = (data.audio_label_LK[:, 0] != NO_LABEL).nonzero()[:, 0]
    label_FK = data.audio_label_LK[rows]
    logits = lm.audio_head.logits(output.hidden_LD[rows], lm.embed_prefix(label_FK))
    for book in range(3):
        wanted = torch.nn.functional.cross_entropy(logits[book], label_FK[:, book], reduction="none")
        assert_close(output.audio_loss_LK[rows, book], wanted)
    assert output.audio_loss_LK.count_nonzero() == len(rows) * 3


def test_a_document_has_the_same_losses_alone():
    lm, layouts = make().eval(), DocumentLayouts(SPACE)
    alone = lm(pack([layouts.asr("b", [3], np.array([[1, 2, 0]]), [4, 5])]))
    assert_close(lm(batch()).text_loss_L[-len(alone.text_loss_L) :], alone.text_loss_L)


def test_every_part_has_a_gradient():
    lm = make()
    output = lm(batch())
    (output.text_loss_L.sum() + output.audio_loss_LK.sum()).backward()
    assert [name for name, p in lm.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_text_alone_takes_the_same_path():
    lm = make()
    output = lm(pack([DocumentLayouts(SPACE).text("a", [1, 2, 3])]))
    (output.text_loss_L.sum() + output.audio_loss_LK.sum()).backward()
    assert not output.audio_loss_LK.any()


def test_sampled_depths_keep_the_expected_loss():
    whole, sampled, data = make().train(), make(deep_frame_share=0.5).train(), batch()
    wanted = whole(data).audio_loss_LK.detach()
    torch.manual_seed(1)
    for _ in range(10):
        drawn = sampled(data).audio_loss_LK.detach()
        assert_close(drawn[:, 0], wanted[:, 0])
        chosen_L = drawn[:, 1] > 0
        assert_close(drawn[chosen_L, 1:], 2 * wanted[chosen_L, 1:])  # half the frames, twice the loss
        assert not drawn[~chosen_L, 1:].any()
    assert 0 < chosen_L.sum() < (wanted[:, 1] > 0).sum()
    assert_close(sampled.eval()(data).audio_loss_LK, wanted)


def test_exact_losses_of_training_are_those_of_evaluation():
    lm, data = make(deep_frame_share=0.3, z_weight=0.5).train(), batch()
    exact, drawn, wanted = lm(data, exact=True), lm(data), lm.eval()(data)
    for name in ("text_loss_L", "audio_loss_LK"):
        assert_close(getattr(exact, name), getattr(wanted, name))
        assert not torch.allclose(getattr(drawn, name), getattr(wanted, name))
    assert lm.train()(data, exact=True).text_loss_L.requires_grad


def test_parts_that_do_not_fit_are_refused_with_both_numbers():
    backbone = CausalBackbone(SPACE.vocab_size, 16, 1, 2, 1, 24)
    with pytest.raises(UserError, match=r"\[6, 4\].*\[6, 4, 3\]"):
        AudioLM(backbone, AudioHead(16, (6, 4), head_dim=8), SPACE)
    with pytest.raises(UserError, match=r"hidden_size 24 .* 16"):
        AudioLM(backbone, AudioHead(24, SIZES, head_dim=8), SPACE)
    with pytest.raises(UserError, match=r"vocab_size 64 .* 128"):
        AudioLM(backbone, AudioHead(16, SIZES, head_dim=8), TokenSpace(100, SIZES))


def test_z_loss_is_in_both_losses_of_training_alone():
    data = batch()
    plain, with_z = make(), make(z_weight=0.5)
    rows = (data.audio_label_LK[:, 0] != NO_LABEL).nonzero()[:, 0]
    output, more = plain(data), with_z(data)
    z_L = plain.backbone.lm_head(output.hidden_LD).logsumexp(-1) ** 2 * (data.text_label_L != NO_LABEL)
    assert_close(more.text_loss_L, output.text_loss_L + 0.5 * z_L)
    label_FK = data.audio_label_LK[rows]
    logits = plain.audio_head.logits(output.hidden_LD[rows], plain.embed_prefix(label_FK))
    z_FK = torch.stack([logits_FV.logsumexp(-1) ** 2 for logits_FV in logits], dim=1)
    assert_close(more.audio_loss_LK[rows], output.audio_loss_LK[rows] + 0.5 * z_FK)
    assert_close(with_z.eval()(data).text_loss_L, plain.eval()(data).text_loss_L)
    with pytest.raises(UserError, match=r"lm\.z_weight: -1 must be >= 0"):
        make(z_weight=-1)


def test_special_tokens_that_share_a_vector_in_a_frozen_table_are_told():
    lm, table = make(), "backbone.embed_tokens"
    lm.backbone.embed_tokens.requires_grad_(False)
    assert indistinct_specials(lm) == []
    rows, eps = lm.backbone.embed_tokens.weight.data, 1e-4 * torch.randn(16)
    rows[SPACE.audio_pad] = rows[SPACE.pad] = rows[SPACE.eos]  # nothing reads them
    assert indistinct_specials(lm) == []
    rows[SPACE.audio_end] = 2 * (rows[SPACE.audio_start] + eps)  # another length is no other direction
    (told,) = indistinct_specials(lm)
    assert f"lm.{table}: the rows of audio_start and audio_end are nearly one vector and do not" in told
    rows[SPACE.c_q] = rows[SPACE.audio_end]
    assert "(so are 2 other pairs)" in indistinct_specials(lm)[0]
    rows.zero_()
    assert "(so are " in indistinct_specials(lm)[0], "unused rows may be nothing at all"
    lm.backbone.embed_tokens.requires_grad_(True)
    assert indistinct_specials(lm) == []
    head = lm.backbone.lm_head.requires_grad_(False).weight.data
    head[SPACE.c_q] = head[SPACE.c_a]  # neither is predicted
    assert indistinct_specials(lm) == []
