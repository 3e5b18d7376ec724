import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from omniaudio.lm import cross_entropy
from omniaudio.lm.cross_entropy import chunked_cross_entropy
from omniaudio.types import NO_LABEL


@pytest.mark.parametrize("max_logits", [2**24, 33])  # one chunk; chunks of three rows
def test_equals_full_logits_with_gradients(monkeypatch, max_logits):
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", max_logits)
    torch.manual_seed(0)
    head = nn.Linear(6, 11)
    hidden = torch.randn(10, 6, requires_grad=True)
    label = torch.randint(11, (10,))
    label[[0, 4, 5]] = NO_LABEL
    scale = torch.rand(10)
    wanted = functional.cross_entropy(head(hidden), label, reduction="none", ignore_index=NO_LABEL)
    wanted_grads = torch.autograd.grad((wanted * scale).sum(), [hidden, *head.parameters()])
    loss = chunked_cross_entropy(head, hidden, label, 11)
    assert_close(loss, wanted)
    assert_close(torch.autograd.grad((loss * scale).sum(), [hidden, *head.parameters()]), wanted_grads)


def test_logits_are_made_for_labelled_rows_only():
    seen = []

    def head(hidden):
        seen.append(len(hidden))
        return hidden

    label = torch.tensor([NO_LABEL, 1, NO_LABEL])
    assert chunked_cross_entropy(head, torch.zeros(3, 4), label, 4).count_nonzero() == 1
    assert seen == [1]


def test_no_label_at_all_is_zero_with_zero_gradient():
    head, hidden = nn.Linear(4, 5), torch.zeros(3, 4, requires_grad=True)
    loss = chunked_cross_entropy(head, hidden, torch.full((3,), NO_LABEL), 5)
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0]
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_ranks_in_step_use_the_head_equally_often(monkeypatch):
    """A rank with two chunks, beside one that needs five: the rest are empty, the loss and gradients are the same."""
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 15)
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
