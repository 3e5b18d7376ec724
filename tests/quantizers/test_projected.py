"""Books of few dimensions that compare directions."""

import pytest
import torch
from torch.nn import functional

from omniaudio.quantizers.projected import ProjectedResidualVQ

SIZES = (16, 8, 4)


def make(**options: object) -> ProjectedResidualVQ:
    torch.manual_seed(0)
    return ProjectedResidualVQ(32, SIZES, code_dim=4, book_dropout=0.0, **options)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_BSD = torch.randn(6, 20, 32, generator=generator)
    valid_BS = torch.arange(20) < torch.tensor([20, 20, 20, 20, 13, 1])[:, None]
    return z_BSD, valid_BS


def test_forward_encode_and_decode_agree() -> None:
    quantizer, (z_BSD, valid_BS) = make(), batch()
    quantizer.train()(z_BSD, valid_BS)
    quantizer.eval()
    out = quantizer(z_BSD, valid_BS)
    assert torch.equal(out.codes_BSK, quantizer.encode(z_BSD, valid_BS))
    torch.testing.assert_close(out.quantized_BSD, quantizer.decode(out.codes_BSK), atol=1e-5, rtol=1e-5)
    assert (out.codes_BSK[~valid_BS] == -1).all() and (out.quantized_BSD[~valid_BS] == 0).all()
    for book, size in enumerate(SIZES):
        assert out.codes_BSK[valid_BS][:, book].min() >= 0 and out.codes_BSK[..., book].max() < size


def test_the_nearest_direction_wins_whatever_the_length() -> None:
    quantizer, (z_BSD, valid_BS) = make(), batch()
    quantizer.train()(z_BSD, valid_BS)
    book = quantizer.eval().books[0]
    directions_VC = functional.normalize(book.codebook.embed, dim=-1)
    wanted_F = (book.down(z_BSD[valid_BS]) @ directions_VC.T).argmax(-1)
    assert torch.equal(quantizer.encode(z_BSD, valid_BS, 1)[valid_BS][:, 0], wanted_F)
    torch.testing.assert_close(book.codebook.embed.norm(dim=-1), torch.ones(16))


def test_gradients_reach_input_and_projections() -> None:
    quantizer, (z_BSD, valid_BS) = make().train(), batch()
    z_BSD.requires_grad_()
    out = quantizer(z_BSD, valid_BS)
    (out.quantized_BSD.square().sum() + out.commit_loss).backward()
    assert z_BSD.grad is not None and z_BSD.grad[valid_BS].abs().sum() > 0
    assert (z_BSD.grad[~valid_BS] == 0).all()
    for book in quantizer.books:
        assert book.in_proj.weight.grad.abs().sum() > 0 and book.out_proj.weight.grad.abs().sum() > 0


def test_items_that_bypass_are_untouched() -> None:
    quantizer, (z_BSD, valid_BS) = make().train(), batch()
    out = quantizer(z_BSD, valid_BS, bypass_share=0.5)
    same_B = (out.quantized_BSD == z_BSD * valid_BS[..., None]).flatten(1).all(1)
    assert same_B.sum() == 3


def test_training_brings_the_output_near() -> None:
    """What a user wants of it: projections and books together learn to code the data."""
    quantizer, (z_BSD, valid_BS) = make(decay=0.9, kmeans_steps=0).train(), batch()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        out = quantizer(z_BSD, valid_BS)
        loss = (out.quantized_BSD - z_BSD * valid_BS[..., None]).square().sum() / (valid_BS.sum() * 32)
        optimizer.zero_grad()
        (loss + 0.25 * out.commit_loss).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("num_items", [1, 4])
def test_an_item_is_coded_alike_alone_and_in_a_batch(num_items: int) -> None:
    quantizer, (z_BSD, valid_BS) = make(), batch()
    quantizer.train()(z_BSD, valid_BS)
    whole = quantizer.eval().encode(z_BSD, valid_BS)
    assert torch.equal(quantizer.encode(z_BSD[:num_items], valid_BS[:num_items]), whole[:num_items])


def test_codes_stay_under_autocast_and_a_model_of_another_type_works() -> None:
    quantizer, (z_BSD, valid_BS) = make(), batch()
    quantizer.train()(z_BSD, valid_BS)
    codes_BSK = quantizer.eval().encode(z_BSD, valid_BS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(z_BSD, valid_BS).codes_BSK, codes_BSK)
        assert torch.equal(quantizer.encode(z_BSD, valid_BS), codes_BSK)
    quantizer.bfloat16().train()
    out = quantizer(z_BSD.bfloat16(), valid_BS)
    assert out.quantized_BSD.dtype == torch.bfloat16 and out.quantized_BSD.isfinite().all()
