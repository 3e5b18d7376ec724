from omniaudio.metrics.codebooks import HealthLimits, book_numbers, complaints

SIZES = (100, 50)


def stats(usage: list[float], perplexity: list[float], explained: list[float]) -> dict[str, float]:
    named = {"usage": usage, "perplexity": perplexity, "explained": explained}
    return {f"vq/{name}/book{i}": value for name, values in named.items() for i, value in enumerate(values)}


def test_healthy_books_are_not_complained_about() -> None:
    assert complaints(stats([0.9, 0.8], [60.0, 30.0], [0.5, 0.7]), SIZES, HealthLimits()) == {}
    assert complaints({}, SIZES, HealthLimits()) == {}


def test_the_book_the_value_and_the_remedy_are_named() -> None:
    found = complaints(stats([0.9, 0.02], [60.0, 1.0], [0.5, 0.5]), SIZES, HealthLimits())
    assert list(found) == [2]
    assert found[2].startswith("book 2 of 2: 2% of its 50 codes are in use") and "restart_after" in found[2]
    found = complaints(stats([0.9, 0.9], [3.0, 30.0], [0.5, 0.7]), SIZES, HealthLimits())
    assert list(found) == [1] and "perplexity 3.0 of 100" in found[1]
    found = complaints(stats([0.9, 0.9], [60.0, 30.0], [0.5, 0.5001]), SIZES, HealthLimits())
    assert list(found) == [2] and "0.0001 of the variance where 0.5000 was left" in found[2]


def test_numbers_come_in_the_order_of_the_books() -> None:
    values = {f"vq/usage/book{i}": i / 10 for i in (2, 0, 1)}
    assert book_numbers(values, "usage") == [0.0, 0.1, 0.2]
