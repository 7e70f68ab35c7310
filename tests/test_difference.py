import pytest

from vbd.config.difference import first_difference


@pytest.mark.parametrize(
    ("theirs", "mine", "told"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b was 2, is 3"),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 5}]}}, "a.b[1].c was 2, is 5"),
        ({"a": [1]}, {"a": [1, 2]}, "a was [1], is [1, 2]"),
        ({}, {"a": 1}, "a was missing, is 1"),
        ({"a": None}, {"a": 1}, "a was None, is 1"),
        ({"a": [1] * 900}, {"a": [2]}, "a was 900 items, is [2]"),
        ({"a": {"b": "x" * 70}}, {"a": 1}, "a was 1 fields, is 1"),
        ({"a": "x" * 70}, {"a": "y\n"}, f"a was '{'x' * 46}..., is 'y\\n'"),
    ],
)
def test_the_first_difference_is_named_by_its_path(theirs: object, mine: object, told: str) -> None:
    assert first_difference(theirs, mine) == told


def test_a_difference_stays_short_however_large_the_values_are() -> None:
    theirs = {"candidates": [{"choices": {"x" * 500: ["y" * 500]}}] * 9}
    told = first_difference(theirs, {"candidates": [{"choices": {"x" * 500: ["z" * 500]}}] * 9})
    assert told.startswith("candidates[0].choices.xxx")
    assert len(told) < 200
