"""Tune while processes die, its store is out of reach or its disk is full: what befalls it then is told in one line."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from ray import tune
from ray.exceptions import RayActorError

from vbd.errors import InputError, StoreError, first_line, input_error_within

_LOGGERS = (
    *("ray.tune.execution.tune_controller", "ray.tune.execution.experiment_state"),
    *("ray.train._internal.syncer", "ray.train._internal.storage"),
)


def fit(tuner: tune.Tuner, run: str, *, fault: Callable[[], InputError | None]) -> None:
    """Runs Tune until nothing is left to do, or until there is a `fault`, which is for the caller to raise.

    Raises StoreError when Tune cannot write its own files at all.
    """
    try:
        with _told_briefly():
            tuner.fit()
    except Exception as error:
        if fault() is not None:
            return  # over which Tune has stumbled too: at its end it reads what it could not write
        if isinstance(error, OSError):
            raise StoreError(f"{run}/tune: cannot be written ({first_line(error)}); choose another place") from error
        raise


@contextlib.contextmanager
def _told_briefly() -> Iterator[None]:
    """Without the tracebacks of what is told in a line of our own."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_shorten)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    text = record.getMessage().strip()
    if isinstance(error, OSError) or "\nTraceback" in text:  # of Tune's own files, which it will write again
        last = first_line(error) if error else text.splitlines()[-1]
        record.msg, record.args, record.exc_info = f"{first_line(text)} {last}", (), None
    # Of a process that died a line of our own says which trial was lost, and what becomes of it.
    return input_error_within(error) is None and not isinstance(error, RayActorError)
