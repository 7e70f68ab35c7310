"""Waiting for a store that is out of reach, and the errors of one that fails.

An object store that does not answer is waited for, `PATIENCE_SECONDS` long.
"""

import contextlib
import contextvars
import errno
import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from vbd.errors import FullError, StoreError, UnreachableError, first_line
from vbd.storage.paths import is_local

T = TypeVar("T")


P = ParamSpec("P")


# How long a store that is out of reach is waited for, in all processes of a job whose environment says so.
PATIENCE_SECONDS = float(os.environ.get("VBD_PATIENCE_SECONDS", "600"))


# What object stores and the way to them say when another attempt may succeed.
PASSING = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|THROTTL|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|HTTP status 5|curlCode|"
    "UNAVAILABLE|DEADLINE_EXCEEDED|timed out",
    re.IGNORECASE,
)


_SECONDS_BETWEEN_LINES = 5.0


_is_waited_for = contextvars.ContextVar("is_waited_for", default=False)


_last_told = [0.0]


def waits_for_store(function: Callable[P, T]) -> Callable[P, T]:
    """The same function of locations, which waits for an object store that does not answer.

    Within `patiently` it does not wait by itself: whoever called that has said for how long.
    """

    @functools.wraps(function)
    def waiting(*values: P.args, **named: P.kwargs) -> T:
        is_far = any(isinstance(value, str) and not is_local(value) for value in (*values, *named.values()))
        if not is_far or _is_waited_for.get():
            return function(*values, **named)
        return patiently(
            lambda: function(*values, **named), seconds=PATIENCE_SECONDS, say=_say, faults=UnreachableError
        )

    return waiting


def _say(text: str) -> None:
    """A line now and then: many threads may wait for the same store."""
    now = time.monotonic()
    if now - _last_told[0] >= _SECONDS_BETWEEN_LINES:
        _last_told[0] = now
        print(text, flush=True)


def patiently(
    action: Callable[[], T],
    *,
    seconds: float,
    say: Callable[[str], None],
    faults: type[StoreError] | tuple[type[StoreError], ...] = StoreError,
) -> T:
    """What `action` returns; a place out of reach or full is tried again for so long, at growing intervals.

    Raises the last of those `faults`.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        before = _is_waited_for.set(True)
        try:
            return action()
        except faults as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            say(f"{error}; tried again for {left:.0f} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 30.0)
        finally:
            _is_waited_for.reset(before)


@contextlib.contextmanager
def faults_reported(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FullError(f"{location}: no space left on the device; free some or choose another folder") from error
        raise store_error(f"{location}: cannot be written", error, mend="choose another place") from error


def store_error(what: str, error: Exception, *, mend: str = "") -> StoreError:
    """One line of what has failed, as an error that tells whether waiting may help."""
    text = f"{what} ({first_line(error)})" + (f"; {mend}" if mend else "")
    return UnreachableError(text) if PASSING.search(str(error)) else StoreError(text)
