"""Numbers, durations and tables in words."""

import pytest

from vbd.console.words import count_of, in_hours, in_time, table_lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (5999, "1 h 40 min")),
        *((7260, "2 h 1 min"), (12_000, "3 h 20 min"), (12 * 86400, "12 d 0 h")),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


@pytest.mark.parametrize(("hours", "text"), [(0.01234, "0.012"), (3.44, "3.4"), (10.4, "10"), (1250, "1,250")])
def test_hours_have_two_digits_or_are_whole(hours: float, text: str) -> None:
    assert in_hours(hours) == text


def test_a_count_has_its_plural() -> None:
    assert [count_of(n, "box", "boxes") for n in (0, 1, 1200)] == ["0 boxes", "1 box", "1,200 boxes"]
    assert count_of(2, "image") == "2 images"


def test_columns_are_aligned() -> None:
    rows = [("name", "score", "at"), ("a", "0.5", "12"), ("longer", "-", "")]
    assert table_lines(rows) == ["name    score  at", "a         0.5  12", "longer      -"]
    assert table_lines(rows, numbers=False) == ["name    score  at", "a       0.5    12", "longer  -"]
    assert table_lines([]) == []
