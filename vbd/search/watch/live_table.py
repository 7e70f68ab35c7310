"""The live table of a search on a terminal: its families, and the trials that run."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.kept.trial import ENDED
from vbd.search.watch.progress import SearchProgress, best_of_families, in_brief, in_digits

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

# Running trials that are shown; on a large cluster the others are counted only.
_MOST_ROWS = 12
# Narrower terminals show neither the variant of a model nor the device of a trial.
_WIDE = 110


@contextlib.contextmanager
def shown(progress: SearchProgress) -> Iterator[None]:
    """Draws the table while the block runs, if stdout is a terminal; what is printed meanwhile appears above it."""
    if not sys.stdout.isatty():
        yield
        return
    from rich.live import Live

    progress.has_table = True
    with Live(LiveTable(progress), refresh_per_second=1, transient=True):
        yield


class LiveTable:
    """Rendered by rich anew at each refresh, within the size that the terminal has then."""

    def __init__(self, progress: SearchProgress):
        self._progress = progress

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        trials, is_wide = self._progress.trials, options.max_width >= _WIDE
        families = _families(trials, is_wide=is_wide)
        running = [trial for trial in trials if trial.status == "running"]
        # Two empty lines, two of the title, two headers, the line below, and one to spare.
        room = max(1, min(_MOST_ROWS, options.size.height - families.row_count - 8))
        yield ""
        yield self._progress.title
        yield families
        yield ""
        yield _running(running[:room], is_wide=is_wide)
        if len(running) > room:
            yield f"and {len(running) - room} more running"


def _families(trials: Iterable[Trial], *, is_wide: bool) -> "Table":
    table = _table("family", "ended", "running", "best score", "of")
    best = best_of_families(trials)
    for family, counts in _states_by_family(trials).items():
        leader = best.get(family)
        table.add_row(
            family,
            str(sum(counts[status] for status in ENDED)),
            str(counts["running"]),
            in_digits(leader.score if leader else None),
            f"{leader.trial_id} {in_brief(leader.config, variant=is_wide)}" if leader else "",
        )
    return table


def _running(trials: Iterable[Trial], *, is_wide: bool) -> "Table":
    table = _table("running", "", "step", "loss", "score", "images/s", *(["where"] if is_wide else []))
    for trial in trials:
        cells = _cells(trial)
        table.add_row(trial.trial_id, in_brief(trial.config, variant=is_wide), *(cells if is_wide else cells[:-1]))
    return table


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=True, min_width=len(name))
    return table


def _states_by_family(trials: Iterable[Trial]) -> dict[str, Counter[str]]:
    states: dict[str, Counter[str]] = {}
    for trial in trials:
        states.setdefault(trial.config.detector, Counter())[trial.status] += 1
    return states


def _cells(trial: Trial) -> tuple[str, ...]:
    if not trial.history:
        return (f"0/{trial.config.steps}", "", "", "", "")
    last = trial.history[-1]
    return (
        f"{last['step']}/{trial.config.steps}",
        f"{last['loss']:.3f}",
        in_digits(last.get(SCORE)),
        f"{last['images_per_second']:.0f}",
        f"{last.get('host', '')} {last.get('device', '')}".strip(),
    )
