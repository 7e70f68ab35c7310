"""What a job prints for a wrong command before anything is started, and errors that are hard to come by."""

import runpy
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from vbd.cli import main

JOBS = Path(__file__).parent.parent / "jobs"


def refused(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    """What `jobs/<job>.py` prints, `out` and `err`, when it refuses wrong flags; Ray is not started for it."""
    monkeypatch.setattr("vbd.cli.connect", lambda: pytest.fail("Ray was started"))
    function: Any = runpy.run_path(str(JOBS / f"{job}.py"))[job]
    monkeypatch.setattr(sys, "argv", [f"{job}.py", *flags])
    with pytest.raises(SystemExit) as stop:
        main(function)
    assert stop.value.code == 2
    return capsys.readouterr()


def mistake_of(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line on standard error that `jobs/<job>.py` prints when it refuses wrong flags."""
    (line,) = refused(job, monkeypatch, capsys, *flags).err.splitlines()
    return line


def interrupted_lock(error: BaseException) -> RuntimeError:
    """What becomes of an exception that a signal handler raises inside `Condition.wait`."""
    lock = threading.Lock()
    try:
        with lock:
            lock.release()
            raise error
    except RuntimeError as made:
        return made
