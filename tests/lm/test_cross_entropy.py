import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from omniaudio.lm import cross_entropy
from omniaudio.lm.cross_entropy import LogitHead, chunked_cross_entropy
from omniaudio.types import NO_LABEL


def setting(bias: bool, cap: float | None = None):
    torch.manual_seed(0)
    head = LogitHead.around(nn.Linear(6, 11, bias=bias), cap)
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
@pytest.mark.parametrize("cap", [None, 0.5])
def test_equals_full_logits_with_gradients(monkeypatch, chunks, bias, even, z_weight, cap):
    if chunks:
        in_chunks_of_three_rows(monkeypatch)
    head, hidden, label = setting(bias, cap)
    scale = torch.full((10,), 0.3) if even else torch.rand(10)
    wanted = full_logits(head, hidden, label, z_weight)
    wanted_grads = torch.autograd.grad((wanted * scale).sum(), [hidden, *head.parameters()])
    loss = chunked_cross_entropy(head, hidden, label, z_weight)
    assert_close(loss, wanted)
    assert_close(torch.autograd.grad((loss * scale).sum(), [hidden, *head.parameters()]), wanted_grads)


def test_logits_are_capped_as_written():
    """With the slope that the hand-made gradient takes."""
    head, hidden, _ = setting(bias=False, cap=0.5)
    plain = functional.linear(hidden, head.weight)
    logits = head(hidden)
    assert_close(logits, 0.5 * (plain / 0.5).tanh())
    assert plain.abs().max() > 1 and logits.abs().max() < 0.5
    (grad,) = torch.autograd.grad(logits.sum(), [hidden])
    assert_close(grad, (1 - (logits / 0.5) ** 2) @ head.weight)


def test_a_second_backward_pass_has_the_same_gradients(monkeypatch):
    in_chunks_of_three_rows(monkeypatch)
    head, hidden, label = setting(bias=False)
    loss = chunked_cross_entropy(head, hidden, label).sum()
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
    loss = chunked_cross_entropy(head, hidden, label)
    assert_close(torch.autograd.grad((loss * scale).sum(), [hidden]), wanted)
    assert made == [3, 3, 1] and head.weight.grad is None
    head.requires_grad_(True)
    chunked_cross_entropy(head, hidden, label).mean().backward()
    assert made == [3, 3, 1] * 2 and head.weight.grad is not None


@pytest.mark.parametrize("cap", [None, 0.5])
def test_mixed_precision_makes_the_products_alone_in_bf16(monkeypatch, cap):
    """As close to float32 as full logits under autocast are, and with gradients of the parameters' type."""
    in_chunks_of_three_rows(monkeypatch)
    head, hidden, label = setting(bias=False, cap=cap)
    exact = torch.autograd.grad(full_logits(head, hidden, label).sum(), [hidden, head.weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(head, hidden, label)
        full = full_logits(head, hidden, label)
    grads = torch.autograd.grad(loss.sum(), [hidden, head.weight])
    assert loss.dtype == torch.float32 and all(grad.dtype == torch.float32 for grad in grads)
    assert_close(loss, full.float(), atol=0.02, rtol=0.02)
    assert all((a - b).abs().max() < 0.03 for a, b in zip(grads, exact, strict=True))
    assert not torch.equal(loss, full_logits(head, hidden, label))


class Counted(LogitHead):
    """A head that knows how many rows each of its uses had."""

    def __init__(self, *sizes, **kwargs):
        super().__init__(*sizes, **kwargs)
        self.uses = []

    def forward(self, hidden, label_N=None, z_weight=0.0):
        self.uses.append(len(hidden))
        return super().forward(hidden, label_N, z_weight)


def test_logits_are_made_for_labelled_rows_only():
    head, label = Counted(4, 4), torch.tensor([NO_LABEL, 1, NO_LABEL])
    assert chunked_cross_entropy(head, torch.zeros(3, 4), label).count_nonzero() == 1
    assert head.uses == [1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("few", [2**24, -1])
def test_no_label_at_all_is_zero_with_zero_gradient(monkeypatch, few, bias):
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", few)
    head, hidden = LogitHead(4, 5, bias=bias), torch.zeros(3, 4, requires_grad=True)
    loss = chunked_cross_entropy(head, hidden, torch.full((3,), NO_LABEL))
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0]
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("labelled", [0, 1, 7])
def test_however_many_rows_the_head_is_used_once(monkeypatch, labelled, bias):
    """Where ZeRO 3 has sharded it every use is a collective, and other ranks have other rows."""
    in_chunks_of_three_rows(monkeypatch)
    head, hidden = Counted(6, 11, bias=bias), torch.randn(7, 6, requires_grad=True)
    label = torch.tensor([3] * labelled + [NO_LABEL] * (7 - labelled))
    chunked_cross_entropy(head, hidden, label).sum().backward()
    assert head.uses == [labelled]


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_of_another_kind_makes_its_logits_again(monkeypatch, bias):
    in_chunks_of_three_rows(monkeypatch)
    head, hidden, label = setting(bias)
    plain = nn.Linear(6, 11, bias=bias)
    plain.load_state_dict(head.state_dict())
    loss, wanted = (chunked_cross_entropy(h, hidden, label) for h in (plain, head))
    assert_close(loss, wanted)
    grads = torch.autograd.grad(loss.sum(), [hidden, *plain.parameters()])
    assert_close(grads, torch.autograd.grad(wanted.sum(), [hidden, *head.parameters()]))


def test_a_head_around_a_linear_map_has_its_parameters():
    linear = nn.Linear(3, 5)
    head = LogitHead.around(linear)
    assert [*head.parameters()] == [*linear.parameters()] and repr(head).endswith(repr(linear)[6:])
    assert torch.equal(head(torch.ones(2, 3)), linear(torch.ones(2, 3)))
