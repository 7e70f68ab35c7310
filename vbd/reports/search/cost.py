"""What a search took in device time and money, beside what was forecast before it began."""

import math
from collections.abc import Callable, Sequence

from vbd.console.words import in_hours, in_time
from vbd.errors import InputError
from vbd.records import Trial
from vbd.reports.page import Cell, Section, Table, percent
from vbd.search.cost.forecast import Actual, Forecast, Record, actual, read_record

_SOURCES = {"measured": "measured before the start", "trials": "told by trials", "estimated": "estimated by pixels"}


def cost(run: str, trials: Sequence[Trial], *, is_over: bool) -> list[Section]:
    """The forecast of a run beside what came of it, or of what has run so far; no section where nothing was forecast."""
    try:
        record = read_record(run)
    except InputError as error:  # the rest of the report holds without it
        return [Section("Cost", [f"The forecast cannot be read: {error}."])]
    if record is None:
        return []
    taken = record.actual if is_over else None
    if taken is None:
        taken = actual(trials, devices=record.before.devices, price=record.before.price)
    return [
        Section(
            "Cost", [_told(record.before, is_over=is_over), _compared(record.before, taken, trials), *_rates(record)]
        )
    ]


def _told(before: Forecast, *, is_over: bool) -> str:
    devices = before.devices
    count = f"{'up to ' if devices.grows else ''}{devices.count:g} {devices.kind}{'' if devices.count == 1 else 's'}"
    early = " It expects that some trials are stopped early." if before.at_most > before.expected else ""
    end = "" if is_over else " The search is not over: taken is what its trials have reported so far."
    return (
        f"The forecast was made for {count}, {devices.per_trial:g} for each trial, "
        f"from the speed of each kind of trial, of which {before.measured} of "
        f"{before.combinations} were measured.{early}{end}"
    )


def _compared(before: Forecast, taken: Actual, trials: Sequence[Trial]) -> Table:
    price = before.price if before.price is not None else math.nan
    paid = taken.price if taken.price is not None else price
    kind = before.devices.kind
    rows: list[tuple[Cell, ...]] = [
        ("trials", before.trials, before.trials, len(trials), _ratio(len(trials), before.trials)),
        _row(f"{kind}-hours", before.expected, before.at_most, taken.device_hours, in_hours),
        _row("time", before.seconds_left, before.seconds_left_at_most, taken.seconds, in_time),
    ]
    if not math.isnan(price):
        costs = before.expected * price, before.at_most * price, taken.device_hours * paid
        rows.append(_row(f"cost, at {price:g} for a {kind}-hour", *costs, "{:,.2f}".format))
    rows.append((f"{kind}s busy", "-", "-", percent(taken.busy_share), "-"))
    columns = ("", "forecast", "at most, if no trial is stopped", "taken", "taken of forecast")
    return Table("Forecast and what it came to", columns, rows)


def _row(name: str, expected: float, at_most: float, taken: float, written: Callable[[float], str]) -> tuple[Cell, ...]:
    cells = ("-" if math.isnan(value) else written(value) for value in (expected, at_most, taken))
    return (name, *cells, _ratio(taken, expected))


def _ratio(taken: float, expected: float) -> str:
    return f"{taken / expected:.0%}" if expected > 0 else "-"


def _rates(record: Record) -> list[str | Table]:
    """What the forecast counted with, and what could not be measured."""
    rows: list[tuple[Cell, ...]] = [
        (str(combination), rate.step, rate.validation, rate.start, rate.problem or _SOURCES[rate.source])
        for combination, rate in sorted(record.rates.items())
    ]
    columns = ("trials of", "a step, s", "a validation, s", "the start, s", "how it is known")
    return [Table("The speed that the forecast counted with", columns, rows)] if rows else []
