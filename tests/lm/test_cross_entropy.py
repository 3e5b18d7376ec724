import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from omniaudio.lm import cross_entropy
from omniaudio.lm.cross_entropy import chunked_cross_entropy
from omniaudio.types import NO_LABEL


def setting(bias: bool):
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=bias)
    hidden = torch.randn(10, 6, requires_grad=True)
    label = torch.randint(11, (10,))
    label[[0, 4, 5]] = NO_LABEL
    return head, hidden, label


def full_logits(head, hidden, label, z_weight=0.0):
    logits = head(hidden)
    loss = functional.cross_entropy(logits, label, reduction="none", ignore_index=NO_LABEL)
    return loss + z_weight * logits.logsumexp(-1) ** 2 * (label != NO_LABEL)


def in_chunks_of_three_rows(monkeypatch):
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", 33)
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 33)


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_equals_full_logits_with_gradients(monkeypatch, chunks, bias, even, z_weight):
    if chunks:
        in_chunks_of_three_rows(monkeypatch)
    head, hidden, label = setting(bias)
    scale = torch.full((10,), 0.3) if even else torch.rand(10)
    wanted = full_logits(head, hidden, label, z_weight)
    wanted_grads = torch.autograd.grad((wanted * scale).sum(), [hidden, *head.parameters()])
    loss = chunked_cross_entropy(head, hidden, label, 11, z_weight)
    assert_close(loss, wanted)
    assert_close(torch.autograd.grad((loss * scale).sum(), [hidden, *head.parameters()]), wanted_grads)


def test_a_second_backward_pass_has_the_same_gradients(monkeypatch):
    in_chunks_of_three_rows(monkeypatch)
    head, hidden, label = setting(bias=False)
    loss = chunked_cross_entropy(head, hidden, label, 11).sum()
    (first,) = torch.autograd.grad(loss, [head.weight], retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * loss, [head.weight], retain_graph=True)
    assert_close(first, kept)
    assert_close(second, 3 * kept)
    assert_close(
        torch.autograd.grad(loss, [hidden])[0],
        torch.autograd.grad(full_logits(head, hidden, label).sum(), [hidden])[0],
    )


def test_logits_of_a_linear_head_are_made_once_and_a_frozen_one_gets_no_gradient(monkeypatch):
    in_chunks_of_three_rows(monkeypatch)
    made = []
    original = cross_entropy._loss_and_error
    monkeypatch.setattr(
        cross_entropy, "_loss_and_error", lambda *words: made.append(len(words[0])) or original(*words)
    )
    head, hidden, label = setting(bias=False)
    scale = torch.rand(10)
    wanted = torch.autograd.grad((full_logits(head, hidden, label) * scale).sum(), [hidden])
    head.requires_grad_(False)
    loss = chunked_cross_entropy(head, hidden, label, 11)
    assert_close(torch.autograd.grad((loss * scale).sum(), [hidden]), wanted)
    assert made == [3, 3, 1] and head.weight.grad is None
    head.requires_grad_(True)
    chunked_cross_entropy(head, hidden, label, 11).mean().backward()
    assert made == [3, 3, 1] * 2 and head.weight.grad is not None


def test_mixed_precision_makes_the_products_alone_in_bf16(monkeypatch):
    """As close to float32 as full logits under autocast are, and with gradients of the parameters' type."""
    in_chunks_of_three_rows(monkeypatch)
    head, hidden, label = setting(bias=False)
    exact = torch.autograd.grad(full_logits(head, hidden, label).sum(), [hidden, head.weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(head, hidden, label, 11)
        full = full_logits(head, hidden, label)
    grads = torch.autograd.grad(loss.sum(), [hidden, head.weight])
    assert loss.dtype == torch.float32 and all(grad.dtype == torch.float32 for grad in grads)
    assert_close(loss, full.float(), atol=0.02, rtol=0.02)
    assert all((a - b).abs().max() < 0.03 for a, b in zip(grads, exact, strict=True))
    assert not torch.equal(loss, full_logits(head, hidden, label))


def test_logits_are_made_for_labelled_rows_only():
    seen = []

    def head(hidden):
        seen.append(len(hidden))
        return hidden

    label = torch.tensor([NO_LABEL, 1, NO_LABEL])
    assert chunked_cross_entropy(head, torch.zeros(3, 4), label, 4).count_nonzero() == 1
    assert seen == [1]


@pytest.mark.parametrize("few", [2**24, -1])
def test_no_label_at_all_is_zero_with_zero_gradient(monkeypatch, few):
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", few)
    head, hidden = nn.Linear(4, 5, bias=False), torch.zeros(3, 4, requires_grad=True)
    loss = chunked_cross_entropy(head, hidden, torch.full((3,), NO_LABEL), 5)
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0]
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_ranks_in_step_use_the_head_equally_often(monkeypatch):
    """A rank with two chunks, beside one that needs five: the rest are empty, the loss and gradients are the same."""
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", 15)
    torch.manual_seed(0)
    layer, uses = nn.Linear(4, 5), []
    hidden, label = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, NO_LABEL, 2, 3, 4])

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, rows):
            uses.append(len(rows))
            return self.layer(rows)

    alone = chunked_cross_entropy(layer, hidden, label, 5)
    wanted = torch.autograd.grad(alone.sum(), [hidden, *layer.parameters()])

    class Peers:
        ReduceOp = torch.distributed.ReduceOp

        @staticmethod
        def all_reduce(most, operation):
            assert operation == Peers.ReduceOp.MAX
            most.clamp_(min=5)

    monkeypatch.setattr(cross_entropy, "distributed", Peers)
    layer.weight.ds_id = 0
    loss = chunked_cross_entropy(Head(), hidden, label, 5)
    assert uses == [3, 2, 0, 0, 0]
    assert_close(loss, alone)
    assert_close(torch.autograd.grad(loss.sum(), [hidden, *layer.parameters()]), wanted)
    assert len(uses) == 10, "and in the backward pass"
