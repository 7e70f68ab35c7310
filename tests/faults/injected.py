"""Faults in the workers of a job that is run from the command line, where Ray starts them on the job's behalf."""

import dataclasses
import functools
import importlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.nodes import NODE

_SPEC = "VBD_FAULTS"


@dataclass(frozen=True)
class Fault:
    """What happens when a worker calls a function.

    hold: it waits until `Faults.let_go`. kill: its process dies. Both happen as many `times` as told, over all processes.
    """

    kind: Literal["hold", "kill"]
    at: str  # "module:function" or "module:Class.method"
    when: str = ""  # part of what the arguments look like
    times: int = 1


@dataclass(frozen=True)
class Held:
    """A call that waits."""

    node: str
    pid: int


class Faults:
    """Some faults, and the folder in which workers count them."""

    def __init__(self, folder: Path, *faults: Fault):
        """`folder` is to be a new one."""
        folder.mkdir(parents=True)
        self._folder, self._faults = folder, faults

    def environment(self, **of_workers: str) -> dict[str, str]:
        """What a driver is to be started with, so that its workers have these faults, and this environment."""
        spec = {"folder": str(self._folder), "faults": [dataclasses.asdict(fault) for fault in self._faults]}
        runtime_env = {
            "worker_process_setup_hook": "tests.faults.injected.install",
            "env_vars": {_SPEC: json.dumps(spec), **of_workers},
        }
        # As `ray job submit --runtime-env-json` tells a driver.
        return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": runtime_env, "metadata": {}}), **of_workers}

    @property
    def held(self) -> list[Held]:
        """The calls that have come to a hold."""
        return [Held(**json.loads(path.read_text())) for path in sorted(self._folder.glob("hold-*.json"))]

    @property
    def happened(self) -> int:
        """How many faults there were."""
        return len(list(self._folder.glob("*.json")))

    def is_held(self, number: int = 0) -> bool:
        """Whether the fault of this number holds all that it is to hold."""
        return len(list(self._folder.glob(f"hold-{number}-*.json"))) == self._faults[number].times

    def let_go(self, *numbers: int) -> None:
        """Lets those go on that wait at the faults of these numbers, or at all, and holds nobody there any more."""
        for number in numbers or range(len(self._faults)):
            (self._folder / f"go-{number}").touch()


def install() -> None:
    """Called by Ray in each worker."""
    spec = json.loads(os.environ[_SPEC])
    folder = Path(spec["folder"])
    for number, fields in enumerate(spec["faults"]):
        fault = Fault(**fields)
        module, _, path = fault.at.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, _faulty(getattr(owner, name), fault, folder, number))


def _faulty(function: Callable[..., Any], fault: Fault, folder: Path, number: int) -> Callable[..., Any]:
    go = folder / f"go-{number}"

    @functools.wraps(function)
    def faulty(*values: Any, **named: Any) -> Any:
        if not go.exists() and fault.when in repr((values, named)) and _count(fault, folder, number):
            if fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            while not go.exists():
                time.sleep(0.02)
        return function(*values, **named)

    return faulty


def _count(fault: Fault, folder: Path, number: int) -> bool:
    """Whether a fault happens once more."""
    me = json.dumps({"node": os.environ.get(NODE, ""), "pid": os.getpid()})
    mine = folder / f"{os.getpid()}.tmp"
    mine.write_text(me)
    for time_ in range(fault.times):
        try:
            os.link(mine, folder / f"{fault.kind}-{number}-{time_}.json")  # with its content, or not at all
        except FileExistsError:
            continue
        return True
    return False
