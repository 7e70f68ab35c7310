import pytest

from vbd.difference import first_difference


@pytest.mark.parametrize(
    ("theirs", "mine", "told"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b was 2, is 3"),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 5}]}}, "a.b[1].c was 2, is 5"),
        ({"a": [1]}, {"a": [1, 2]}, "a was [1], is [1, 2]"),
        ({}, {"a": 1}, "a was None, is 1"),
    ],
)
def test_the_first_difference_is_named_by_its_path(theirs: object, mine: object, told: str) -> None:
    assert first_difference(theirs, mine) == told
