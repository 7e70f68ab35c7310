"""How far a long job is: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from types import TracebackType

_SECONDS_BETWEEN_LINES = 5


class Progress:
    """Counts what is done of `total` and tells it with the rate and the time left; used as a context manager."""

    def __init__(self, title: str, total: int, *, unit: str):
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._started = self._told = time.monotonic()
        self._bar = _terminal_bar(title, total, unit) if sys.stdout.isatty() else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar[0].stop()

    def advance(self, count: int, *, note: str = "") -> None:
        """`count` more are done; `note` is told beside them."""
        self._done += count
        if self._bar:
            bar, task = self._bar
            bar.update(task, completed=self._done, note=note)
            return
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._told = now
        rate = self._done / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else float("nan")
        print(
            f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:.0f} {self._unit}/s, {left:.0f} s left"
            + (f", {note}" if note else ""),
            flush=True,
        )


def _terminal_bar(title: str, total: int, unit: str):  # type: ignore[no-untyped-def]  # rich is imported here only
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[note]}}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns)
    return bar, bar.add_task(title, total=total, note="")
