import copy

import torch
from torch.testing import assert_close

from omniaudio.lm.audio_head import AudioHead, DepthLinear
from omniaudio.types import NO_LABEL


def make(sizes=(6, 4, 3)):
    torch.manual_seed(0)
    return AudioHead(16, sizes, num_layers=2, head_dim=8).eval()


def test_depth_linear_uses_the_weights_of_its_depth():
    linear = DepthLinear(2, 3, num_depths=4)
    x = torch.randn(5, 4, 2)
    wanted = torch.stack([x[:, k] @ linear.weight[:, 2 * k : 2 * k + 2].T for k in range(4)], dim=1)
    assert_close(linear(x.flatten(0, 1), 5), wanted.flatten(0, 1))
    assert_close(linear.step(x[:, 2], 2), wanted[:, 2])


def test_steps_with_cache_equal_the_teacher_forced_pass():
    head = make()
    hidden, prefix = torch.randn(5, 16), torch.randn(5, 2, 16)
    past = []
    inputs = [hidden, prefix[:, 0], prefix[:, 1]]
    for x, wanted in zip(inputs, head.logits(hidden, prefix), strict=True):
        assert_close(head.step(x, past), wanted)


def test_a_book_does_not_see_later_books():
    head = make()
    prefix = torch.randn(1, 2, 16, requires_grad=True)
    head(torch.randn(1, 16), prefix)[1].sum().backward()
    assert prefix.grad[0, 0].any()
    assert not prefix.grad[0, 1].any()


def test_a_frame_without_prefix_has_its_first_depth_and_the_others_lose_nothing():
    head = make()
    hidden, prefix = torch.randn(5, 16, requires_grad=True), torch.randn(5, 2, 16)
    label = torch.tensor([[1, 2, 0], [5, 3, 2], [0, 0, 0], [6, 4, 3], [2, 1, 1]])
    for num_full in (0, 2, 5):
        kept = torch.ones(5, 3)
        kept[num_full:, 1:] = 0
        results = []
        for loss in (head.loss(hidden, prefix[:num_full], label), head.loss(hidden, prefix, label) * kept):
            gradients = torch.autograd.grad(loss.sum(), [hidden, *head.parameters()], allow_unused=True)
            results.append([loss, *gradients])
        for sampled, wanted in zip(*results, strict=True):
            assert_close(sampled, wanted)


def test_loss_is_cross_entropy_by_book():
    head = make()
    hidden, prefix = torch.randn(2, 16), torch.randn(2, 2, 16)
    label = torch.tensor([[6, 4, 3], [0, NO_LABEL, 2]])
    loss = head.loss(hidden, prefix, label)
    logits = head.logits(hidden, prefix)
    assert_close(loss[0, 1], -logits[1].log_softmax(1)[0, 4])
    assert_close(loss[1, 2], -logits[2].log_softmax(1)[1, 2])
    assert loss[1, 1] == 0


def test_no_frames_at_all():
    head = make()
    loss = head.loss(torch.randn(0, 16), torch.randn(0, 2, 16), torch.zeros(0, 3, dtype=torch.int64))
    assert loss.shape == (0, 3)
    loss.sum().backward()


def test_recomputation_gives_the_same_gradients():
    plain = make()
    again = copy.deepcopy(plain)
    again.recompute = True
    hidden, prefix = torch.randn(5, 16), torch.randn(5, 2, 16)
    kept: list[int] = []

    def count(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for head in (plain, again):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = torch.cat(head(hidden, prefix)).square().sum()
        loss.backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)
    assert kept[1] < kept[0] / 3
