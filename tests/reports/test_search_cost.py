import dataclasses
import math
from pathlib import Path

from tests.reports.searches import search_of
from vbd import storage
from vbd.reports.page import Table
from vbd.reports.search.cost import cost
from vbd.search.cost.forecast import Actual, Devices, Forecast, Record, write_record
from vbd.search.cost.rates import combination_of, no_rate, rates_of

TRIALS = search_of(3)
BEFORE = Forecast(
    trials=4,
    combinations=3,
    measured=2,
    spent=0.0,
    at_most=20.0,
    expected=12.0,
    seconds_left_at_most=7_200.0,
    seconds_left=3_600.0,
    devices=Devices("GPU", 3, 1),
    price=2.0,
)


def rows_of(run: Path, *, is_over: bool = True, table: int = 0) -> dict[str, list]:
    (section,) = cost(str(run), TRIALS, is_over=is_over)
    found = [block for block in section.blocks if isinstance(block, Table)][table]
    assert all(len(row) == len(found.columns) for row in found.rows)
    return {str(row[0]): list(row[1:]) for row in found.rows}


def test_the_forecast_stands_beside_what_was_taken(tmp_path: Path) -> None:
    write_record(str(tmp_path), Record(BEFORE, {}, Actual(15.0, 7_200.0, 0.75, 2.0)))
    assert rows_of(tmp_path) == {
        "trials": [4, 4, 3, "75%"],
        "GPU-hours": ["12", "20", "15", "125%"],
        "time": ["60 min", "2 h 0 min", "2 h 0 min", "200%"],
        "cost, at 2 for a GPU-hour": ["24.00", "40.00", "30.00", "125%"],
        "GPUs busy": ["-", "-", "75.0%", "-"],
    }
    (section,) = cost(str(tmp_path), TRIALS, is_over=True)
    assert "some trials are stopped early" in str(section.blocks[0])


def test_of_a_search_that_is_not_over_its_trials_tell_what_was_taken(tmp_path: Path) -> None:
    """What the file says came to it is of an earlier session."""
    write_record(str(tmp_path), Record(BEFORE, {}, Actual(15.0, 7_200.0, 0.75, 2.0)))
    hours = sum(trial.seconds for trial in TRIALS) / 3_600
    assert rows_of(tmp_path, is_over=False)["GPU-hours"][2] == f"{hours:.2g}"
    (section,) = cost(str(tmp_path), TRIALS, is_over=False)
    assert "The search is not over" in str(section.blocks[0])


def test_without_price_or_rate_it_says_what_it_can(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("at_most", "expected", "seconds_left_at_most", "seconds_left"), math.nan)
    write_record(str(tmp_path), Record(dataclasses.replace(BEFORE, price=None, **unknown), {}, None))
    rows = rows_of(tmp_path)
    assert rows["GPU-hours"][:2] == ["-", "-"]
    assert not any(name.startswith("cost") for name in rows)


def test_the_speeds_that_were_counted_with_are_told(tmp_path: Path) -> None:
    rates = rates_of(TRIALS[:1]) | {combination_of(search_of(20)[-1].config): no_rate("out of memory")}
    write_record(str(tmp_path), Record(BEFORE, rates, None))
    assert {row[-1] for row in rows_of(tmp_path, table=1).values()} == {"told by trials", "out of memory"}


def test_without_a_forecast_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert cost(str(tmp_path), TRIALS, is_over=True) == []


def test_a_broken_forecast_does_not_break_the_report(tmp_path: Path) -> None:
    storage.write_json(f"{tmp_path}/forecast.json", {"schema": 1})
    (section,) = cost(str(tmp_path), TRIALS, is_over=True)
    assert "cannot be read" in str(section.blocks[0])
