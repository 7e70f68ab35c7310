"""Somebody who works in a folder."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vbd import storage
from vbd.storage import ownership
from vbd.storage.ownership import OWNER

# An owner of another machine.
FAR: dict[str, Any] = {
    "id": "f" * 32,
    "job": "tune",
    "host": "far",
    "machine": "another boot",
    "pid": 7,
    "started": 5,
    "ray_job": "raysubmit_1",
    "since": "2026-01-02 03:04:05 UTC",
    "every": 0.1,
    "beat": 3,
}
FAR_WHO = "tune (process 7 on far, Ray job raysubmit_1)"


def near(pid: int) -> dict[str, Any]:
    """An owner of this machine."""
    return FAR | {"machine": ownership._machine(), "pid": pid, "started": ownership._started(pid) or 1, "host": "near"}


def write_owner(folder: str, record: dict[str, Any]) -> None:
    """The folder is that owner's."""
    storage.write_json(f"{folder}/{OWNER}", record)


@contextmanager
def working_in(folder: str) -> Iterator[str]:
    """A process of this machine works in a folder; gives what another job is told."""
    with subprocess.Popen(["sleep", "600"]) as other:
        write_owner(folder, near(other.pid))
        try:
            yield (
                f"{folder}: tune (process {other.pid} on near, Ray job raysubmit_1) has worked here since 2026-01-02 03:04:05 "
                "UTC; wait until it ends, stop it, or choose another folder"
            )
        finally:
            other.kill()
