"""What a job has to tell about itself in one line of JSON when it ends, whatever ends it."""

import json
import math
from typing import Any

_facts: dict[str, Any] = {}


def tell(**facts: Any) -> None:
    """Adds facts to the line; one told again replaces the former."""
    _facts.update(facts)


def forget() -> None:
    """No fact is told yet: a job begins."""
    _facts.clear()


def line_of(job: str, *, exit_code: int, seconds: float, reason: str = "") -> str:
    """The line: JSON with sorted keys; `reason` says in a sentence why a job has not done what it was to do."""
    told = (
        _facts | {"job": job, "exit": exit_code, "seconds": round(seconds, 1)} | ({"reason": reason} if reason else {})
    )
    return json.dumps({name: _plain(value) for name, value in told.items()}, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    """NaN is no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
