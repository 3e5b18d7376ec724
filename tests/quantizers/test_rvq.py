"""Residual quantizer: straight-through, bypass, dropped books, padding, leading books, autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from omniaudio.draws import Draws
from omniaudio.errors import UserError
from omniaudio.quantizers.base import choose_passing
from omniaudio.quantizers.rvq import ResidualVQ


@pytest.fixture
def quantizer() -> ResidualVQ:
    torch.manual_seed(0)
    return ResidualVQ(6, [16, 8, 4], book_dropout=0.0, kmeans_steps=2)


@pytest.fixture(name="z_BSD")
def make_z() -> Tensor:
    return torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(1))


VALID = torch.arange(10)[None] < torch.tensor([10, 7, 1])[:, None]


def test_gradient_passes_straight_through(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    z_BSD.requires_grad_()
    output = quantizer(z_BSD, VALID)
    weight = torch.randn_like(z_BSD)
    (output.quantized_BSD * weight).sum().backward()
    assert z_BSD.grad is not None
    torch.testing.assert_close(z_BSD.grad, weight * VALID[..., None])


def test_eval_forward_is_encode_and_decode(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    quantizer(z_BSD, VALID)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()
    output = quantizer(z_BSD, VALID)
    codes_BSK = quantizer.encode(z_BSD, VALID)
    assert torch.equal(output.codes_BSK, codes_BSK)
    assert (codes_BSK[~VALID] == -1).all()
    assert (codes_BSK[VALID] >= 0).all()
    torch.testing.assert_close(output.quantized_BSD, quantizer.decode(codes_BSK))
    error = (z_BSD - output.quantized_BSD)[VALID].square().mean()
    torch.testing.assert_close(output.commit_loss, error)
    torch.testing.assert_close(output.stats["error/book2"], error)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} moved in eval mode"


def test_a_readable_loop_gives_the_same_codes(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    quantizer.eval()
    codes_BSK = quantizer.encode(z_BSD, VALID)
    for item in range(3):
        for step in VALID[item].nonzero()[:, 0]:
            residual = z_BSD[item, step].clone()
            for book_index, book in enumerate(quantizer.books):
                code = int(
                    min(range(book.size), key=lambda v: float(((residual - book.embed[v]) ** 2).sum()))
                )
                assert code == int(codes_BSK[item, step, book_index])
                residual -= book.embed[code]


def test_an_item_is_coded_alike_alone(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    quantizer.eval()
    batch = quantizer.encode(z_BSD, VALID)
    alone = quantizer.encode(z_BSD[1:2, :7], torch.ones(1, 7, dtype=torch.bool))
    assert torch.equal(batch[1, :7], alone[0])


def test_leading_books(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    quantizer.eval()
    codes_BSK = quantizer.encode(z_BSD, VALID)
    assert torch.equal(quantizer.encode(z_BSD, VALID, num_books=2), codes_BSK[..., :2])
    hidden_BSK = codes_BSK.clone()
    hidden_BSK[..., 1:] = -1
    torch.testing.assert_close(quantizer.decode(codes_BSK[..., :1]), quantizer.decode(hidden_BSK))
    for bad in (0, 4):
        with pytest.raises(UserError, match="1 to 3"):
            quantizer.encode(z_BSD, VALID, num_books=bad)


def test_learning_explains_more_with_every_book_and_every_step(z_BSD: Tensor) -> None:
    torch.manual_seed(0)
    quantizer = ResidualVQ(6, [16, 8, 4], decay=0.9, book_dropout=0.0, restart_after=5)
    x_BSD = torch.randn(20, 10, 6)
    valid_BS = torch.ones(20, 10, dtype=torch.bool)
    first = quantizer(x_BSD, valid_BS).stats
    for _ in range(30):
        last = quantizer(x_BSD, valid_BS).stats
    errors = [float(last[f"error/book{k}"]) for k in range(3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < float(first["error/book2"])
    assert all(float(last[f"usage/book{k}"]) > 0.9 for k in range(3))
    assert last.keys() == {
        f"{name}/book{k}"
        for name in ("usage", "perplexity", "restarts", "error", "explained")
        for k in range(3)
    }


def test_bypassed_items_keep_their_input(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    output = quantizer(z_BSD, VALID, bypass_share=1.0)
    torch.testing.assert_close(output.quantized_BSD, z_BSD * VALID[..., None])
    assert (output.codes_BSK[VALID] >= 0).all()
    half = [int(choose_passing(5, 0.5, z_BSD.device, Draws(step)).sum()) for step in range(400)]
    assert set(half) == {2, 3}
    assert abs(sum(half) / 400 - 2.5) < 0.1
    assert choose_passing(5, 0.0, z_BSD.device, Draws(0)).all()


def test_dropped_books_are_the_last_ones_of_whole_items() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVQ(6, [16, 8, 4], book_dropout=1.0)
    z_BSD, valid_BS = torch.randn(64, 5, 6), torch.ones(64, 5, dtype=torch.bool)
    quantizer(z_BSD, valid_BS)
    before = ResidualVQ(6, [16, 8, 4])
    before.load_state_dict(quantizer.state_dict())
    output = quantizer(z_BSD, valid_BS)
    kept_BSK = output.codes_BSK >= 0
    assert kept_BSK[..., 0].all(), "the first book is never dropped"
    assert not kept_BSK[..., 2].any()
    assert 10 < kept_BSK[:, 0, 1].sum() < 54
    assert (kept_BSK == kept_BSK[:, :1]).all()
    torch.testing.assert_close(output.quantized_BSD, before.decode(output.codes_BSK))


def test_distances_stay_float32_under_autocast(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    quantizer.eval()
    expected = quantizer(z_BSD, VALID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(z_BSD, VALID)
    assert torch.equal(output.codes_BSK, expected.codes_BSK)
    torch.testing.assert_close(output.commit_loss, expected.commit_loss)


def test_training_repeats_from_the_global_seed_and_the_state(z_BSD: Tensor) -> None:
    def make() -> ResidualVQ:
        return ResidualVQ(6, [16, 8, 4], gumbel_temperature=0.5, restart_after=2)

    torch.manual_seed(0)
    first, second = make(), make()
    first(z_BSD, VALID)
    second.load_state_dict(first.state_dict())
    outputs = []
    for quantizer in (first, second):
        torch.manual_seed(7)
        outputs.append([quantizer(z_BSD, VALID, bypass_share=0.5).quantized_BSD for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("gumbel", [0.0, 0.5])
def test_a_bad_frame_changes_nothing_of_the_others(z_BSD: Tensor, gumbel: float) -> None:
    """Neither their codes nor what the books learn; to the books it is as if it were padding."""
    ours = ResidualVQ(6, [16, 8, 4], gumbel_temperature=gumbel, book_dropout=0.0).train()
    valid_BS = torch.ones(z_BSD.shape[:2], dtype=torch.bool)
    ours(z_BSD, valid_BS, draws=Draws(1))
    theirs = copy.deepcopy(ours)
    broken_BSD, without_BS = z_BSD.clone(), valid_BS.clone()
    broken_BSD[0, 2, 3], without_BS[0, 2] = float("nan"), False
    found, wanted = ours(broken_BSD, valid_BS, draws=Draws(2)), theirs(broken_BSD, without_BS, draws=Draws(2))
    assert torch.equal(found.codes_BSK[without_BS], wanted.codes_BSK[without_BS])
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert not found.commit_loss.isfinite() and wanted.commit_loss.isfinite()
    assert not wanted.quantized_BSD[0, 2].any(), "padding is zero, whatever it held"


def test_no_valid_frame_is_no_nan(quantizer: ResidualVQ, z_BSD: Tensor) -> None:
    quantizer(z_BSD, VALID)
    output = quantizer(z_BSD, torch.zeros_like(VALID))
    assert output.commit_loss == 0
    assert all(torch.isfinite(value) for value in output.stats.values())


def test_sizes_are_checked() -> None:
    for sizes in ([], [8, 1]):
        with pytest.raises(UserError, match="codebook_sizes"):
            ResidualVQ(6, sizes)


@pytest.mark.parametrize(("replacement", "mixed"), [("instance", False), ("token", True)])
def test_replacement_of_items_or_of_frames(replacement: str, mixed: bool) -> None:
    torch.manual_seed(0)
    quantizer = ResidualVQ(6, [16, 8], book_dropout=0.0, replacement=replacement)
    z_BSD = torch.randn(8, 40, 6)
    valid_BS = torch.ones(8, 40, dtype=torch.bool)
    out = quantizer(z_BSD, valid_BS, bypass_share=0.5).quantized_BSD
    same_BS = (out == z_BSD).all(-1)
    assert same_BS.float().mean() == pytest.approx(0.5, abs=0.1 * mixed)
    assert bool((same_BS.any(1) & ~same_BS.all(1)).any()) == mixed
    with pytest.raises(UserError, match="'word': can be instance, token"):
        ResidualVQ(6, [16, 8], replacement="word")
