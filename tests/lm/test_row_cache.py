import pytest
import torch
from torch.testing import assert_close

from omniaudio.lm.backbone import CausalBackbone, Gemma2Backbone, Gemma3Backbone, GemmaBackbone, Qwen3Backbone
from omniaudio.lm.row_cache import RowCache

LENGTHS = (3, 7, 1, 7)


@pytest.fixture(params=[CausalBackbone, Qwen3Backbone, GemmaBackbone, Gemma2Backbone, Gemma3Backbone])
def backbone(request):
    torch.manual_seed(0)
    entries = {"sliding_window": 4} if request.param in (Gemma2Backbone, Gemma3Backbone) else {}
    if request.param is Gemma2Backbone:
        entries |= {"attn_logit_softcapping": 0.05, "query_pre_attn_scalar": 1}
    return request.param(40, 16, 2, 2, 1, 24, **entries).eval()


def read(backbone, documents):
    """The cache of every document."""
    caches = [backbone.new_cache() for _ in documents]
    for document, cache in zip(documents, caches, strict=True):
        backbone.step(document, cache)
    return caches


@torch.no_grad()
def test_rows_of_any_lengths_equal_documents_alone(backbone):
    """Also when rows leave: the longest first, so that the padding of the others goes with it."""
    documents, more = [torch.randn(n, 16) for n in LENGTHS], torch.randn(4, 5, 16)
    alone = read(backbone, documents)
    past = RowCache(read(backbone, documents))
    rows = [0, 1, 2, 3]
    for step, kept in enumerate(([0, 1, 2, 3], [0, 1, 2, 3], [0, 2], [0, 2], [1])):
        if len(kept) < len(rows):
            past.keep(kept)
            rows = [rows[i] for i in kept]
        hidden_BD = backbone.step_rows(more[rows, step], past)
        for row, hidden_D in zip(rows, hidden_BD, strict=True):
            assert_close(hidden_D, backbone.step(more[row, step][None], alone[row])[0], rtol=1e-5, atol=1e-5)
    assert rows == [2] and past.lengths == [1 + 5] == [past.cache.get_seq_length()]


@torch.no_grad()
def test_padding_and_other_rows_are_not_seen(backbone):
    documents, new = [torch.randn(n, 16) for n in LENGTHS], torch.randn(4, 16)
    hidden_BD = backbone.step_rows(new, RowCache(read(backbone, documents)))
    others = RowCache(read(backbone, [documents[0], *(torch.randn(n, 16) for n in LENGTHS[1:])]))
    for layer in others.cache.layers:
        assert not layer.keys[0, :, :4].any()
        layer.keys[0, :, :4] = layer.values[0, :, :4] = 1e3
    assert torch.equal(backbone.step_rows(new, others)[0], hidden_BD[0])


@torch.no_grad()
def test_a_single_past_is_extended_in_place_and_has_no_mask(backbone):
    (cache,) = read(backbone, [torch.randn(3, 16)])
    past = RowCache([cache])
    assert past.visible(torch.device("cpu")) is None
    backbone.step_rows(torch.randn(1, 16), past)
    assert past.cache is cache and cache.get_seq_length() == 4
