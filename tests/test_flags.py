"""The rules of flags and fields: every number has bounds, and a flag beyond them ends a job in one line before Ray starts."""

import math
import runpy
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from tests.mistakes import JOBS, mistake_of
from vbd.config import Candidate, PrepareConfig, RunOptions, SearchConfig, TrainConfig
from vbd.config.checked import between, broken_rule, hints_of

NAMES = sorted(path.stem for path in JOBS.glob("[a-z]*.py"))
VALUES = ("0", "-1", "nan", "inf", "1e300", str(2**70))


def kind_of(hint: Any) -> type | None:
    """int or float for a number, or for a list of numbers; None for other types."""
    if get_origin(hint) in (Annotated, tuple):
        return kind_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return next((kind for part in get_args(hint) if (kind := kind_of(part))), None)
    return hint if hint in (int, float) else None


def numbers_of(job: str) -> dict[str, Any]:
    """The flags of a job that take numbers, and their types."""
    return {name: hint for name, hint in hints_of(_function(job)).items() if name != "return" and kind_of(hint)}


def _function(job: str) -> Any:
    return runpy.run_path(str(JOBS / f"{job}.py"))[job]


def _breaks(hint: Any, text: str) -> bool:
    try:
        value = kind_of(hint)(text)  # type: ignore[misc]
    except ValueError:
        return True  # no number of that kind
    return bool(broken_rule(hint, value))


@pytest.mark.parametrize("job", NAMES)
def test_a_number_out_of_bounds_ends_a_job_in_one_line(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    function = _function(job)
    wanted = [name for name in hints_of(function) if name != "return" and name not in (function.__kwdefaults__ or {})]
    given = [part for name in wanted if name != "preset" for part in (f"--{name.replace('_', '-')}", "somewhere")]
    for name, hint in numbers_of(job).items():
        flag = f"--{name.replace('_', '-')}"
        broken = [text for text in VALUES if _breaks(hint, text)]
        assert "nan" in broken
        assert "1e300" in broken
        for text in broken:
            line = mistake_of(job, monkeypatch, capsys, *given, flag, text)
            assert flag in line, line
            assert text in line or f" {kind_of(hint)(text)}: want" in line, line  # type: ignore[misc]


def test_the_jobs_take_numbers() -> None:
    assert {job: len(numbers_of(job)) for job in NAMES} == {
        **{"eda": 0, "ensemble": 3, "evaluate": 2, "predict": 2, "prepare": 7, "report": 0, "sample": 6, "train": 3},
        "tune": 5,
    }


@pytest.mark.parametrize(
    ("job", "flags", "told"),
    [
        ("sample", ["--processes", "0"], "error: --processes 0: want 1 to 1024"),
        ("sample", ["--output", ""], "error: --output '': want a value; leave the flag out for the default"),
        ("tune", ["--name", ""], "error: --name '': want a value; leave the flag out for the default"),
        ("tune", ["--name", "../x"], "error: --name ../x: want a name of ASCII letters, digits and . _ -"),
        ("tune", ["--price", "-1"], "error: --price -1.0: want 0 to 1000000.0"),
        ("tune", ["--price", "nan"], "error: --price nan: want 0 to 1000000.0"),
        ("tune", ["--seed", "9223372036854775808"], "error: --seed 9223372036854775808: want 0 to 2147483647"),
        ("tune", ["--set", "batch_size=200000000"], "error: --set: batch_size is 200000000; want 1 to 1024"),
        ("prepare", ["--source", "a", "--output", "b", "--folds", "1"], "error: --folds 1: want 2 to 100"),
        (
            "predict",
            ["--images", "a", "--output", "b", "--score-threshold", "nan"],
            "error: --score-threshold nan: want 0 to 1",
        ),
    ],
)
def test_a_flag_is_refused_with_its_value(
    job: str,
    flags: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mistake_of(job, monkeypatch, capsys, *flags) == told


@pytest.mark.parametrize("kind", [TrainConfig, RunOptions, PrepareConfig, Candidate, SearchConfig])
def test_every_number_of_a_config_has_bounds(kind: type) -> None:
    for name, hint in hints_of(kind).items():
        if number := kind_of(hint):
            beyond = [-(10**30), 10**30] if number is int else [-1e300, 1e300, math.nan]
            for value in beyond:
                assert broken_rule(hint, (value,) if get_origin(hint) is tuple else value), (name, value)


def test_bounds_say_what_they_take() -> None:
    inside, above, below = between(1, 8), between(0, 1, above=True), between(0, 1, below=True)
    assert [rule.wanted for rule in (inside, above, below)] == [
        "1 to 8",
        "more than 0 and at most 1",
        "at least 0 and less than 1",
    ]
    assert [inside.holds(value) for value in (0, 1, 8, 9, math.nan)] == [False, True, True, False, False]
    assert [above.holds(0), above.holds(1), below.holds(0), below.holds(1)] == [False, True, True, False]
