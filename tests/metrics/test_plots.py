import numpy as np
import pytest
from PIL import Image

from omniaudio.metrics.codes import BookUse
from omniaudio.metrics.plots import (
    book_bars,
    book_curves,
    loss_curves,
    mae_by_books,
    quality_bars,
    smoothed,
    spectrograms,
)

CURVES = {"train/loss": [(0.0, 2.0), (1.0, 1.0)], "val/loss": [(1.0, 1.5)], "train/ce/text": [(0.0, 1.0)]}
BOOKS = [BookUse(size=16, num_frames=100, usage=0.5, perplexity=4.0)] * 3


BOOK_CURVES = {
    f"train/vq/{name}/book{book}": [(0.0, 0.5 + book), (10.0, 0.9)]
    for name in ("usage", "perplexity", "error", "restarts")
    for book in range(3)
}


def draw(path, what: str) -> None:
    if what == "curves":
        loss_curves(path, CURVES, ["loss", "ce/text", "ce/audio", "a", "b"])
    elif what == "spectrograms":
        spectrograms(
            path, {"original": np.random.randn(20, 30), "flow": np.zeros((20, 25), np.float16)}, 0.02
        )
    elif what == "book curves":
        assert book_curves(path, BOOK_CURVES)
    elif what == "books":
        book_bars(path, BOOKS)
    elif what == "quality":
        quality_bars(
            path, {"MCD": {"copy": 2.0, "flow": 5.0}, "DNSMOS": {"original": 3.0, "copy": 2.0, "flow": None}}
        )
    else:
        mae_by_books(path, {"refined": [3.0, 2.0, 1.0], "coarse": [3.0, 2.5, 2.0]})


@pytest.mark.parametrize("what", ["curves", "spectrograms", "book curves", "books", "mae", "quality"])
def test_picture_is_drawn_and_the_same_every_time(tmp_path, what):
    np.random.seed(0)
    draw(tmp_path / "deep" / "one.png", what)
    np.random.seed(0)
    draw(tmp_path / "two.png", what)
    picture = np.asarray(Image.open(tmp_path / "two.png").convert("RGB"))
    assert picture.std() > 5, "an empty picture"
    assert (tmp_path / "deep" / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_spectrograms_go_on_in_the_next_row(tmp_path):
    mels = {f"step {i}": np.random.randn(20, 30) for i in range(3)}
    sizes = []
    for per_row in (None, 2):
        spectrograms(tmp_path / "strip.png", mels, 0.02, per_row)
        sizes.append(Image.open(tmp_path / "strip.png").size)
    (wide, low), (narrow, high) = sizes
    assert narrow == pytest.approx(wide * 2 / 3, abs=1) and high == 2 * low


def test_a_loud_noise_leaves_the_colours_of_the_first(tmp_path):
    speech, found = np.random.randn(20, 30), []
    for noise in (0.0, 50.0):
        spectrograms(tmp_path / "pair.png", {"original": speech, "step 1": speech + noise}, 0.02)
        picture = np.asarray(Image.open(tmp_path / "pair.png").convert("RGB"))
        found.append(picture[:, : picture.shape[1] // 2])
    assert (found[0] == found[1]).all()


def test_a_stage_without_books_has_no_picture_of_them(tmp_path):
    assert not book_curves(tmp_path / "none.png", CURVES) and not (tmp_path / "none.png").exists()


def test_drawing_leaves_no_global_figure(tmp_path):
    import matplotlib.pyplot

    draw(tmp_path / "a.png", "books")
    assert matplotlib.pyplot.get_fignums() == []


def test_running_mean_by_hand():
    np.testing.assert_allclose(smoothed(np.array([3.0, 0.0, 3.0, 6.0]), window=3), [1.5, 2.0, 3.0, 4.5])
    np.testing.assert_allclose(smoothed(np.ones(200)), 1.0)
