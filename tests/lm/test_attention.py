import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from omniaudio.lm.attention import PACKED, packed_attention, register


def inputs(num_new, num_all, seed=0):
    rng = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, num_new, 8, generator=rng)
    key, value = torch.randn(2, 1, 2, num_all, 8, generator=rng)
    return query, key, value


def dense(query, key, value, visible):
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(1, 2)


def test_documents_equal_a_dense_document_mask():
    lengths = [3, 1, 5]
    query, key, value = inputs(9, 9)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    visible = (owner[:, None] == owner[None]) & torch.ones(9, 9, dtype=torch.bool).tril()
    out, _ = packed_attention(torch.nn.Identity(), query, key, value, doc_len=lengths)
    assert_close(out, dense(query, key, value, visible))


@pytest.mark.parametrize("num_new", [1, 3, 6])
def test_cached_keys_are_all_seen(num_new):
    query, key, value = inputs(num_new, 6)
    visible = torch.ones(num_new, 6, dtype=torch.bool).tril(6 - num_new)
    out, _ = packed_attention(torch.nn.Identity(), query, key, value)
    assert_close(out, dense(query, key, value, visible))


def test_transformers_finds_it():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert register() == PACKED
    assert ALL_ATTENTION_FUNCTIONS[PACKED] is packed_attention
