"""A small search in a process of its own, and what befalls it there: `python -m tests.search.faulty_searches`."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.nodes import ROOT, Job
from vbd.config import Candidate, RunOptions, SearchConfig, TrainConfig

_SPEC = "VBD_FAULTY_SEARCH"
# One report in three steps; a trial takes some two seconds.
TINY = TrainConfig(
    detector="yolox", variant="nano", image_size=64, batch_size=4, steps=9, report_every=3, warmup_steps=1
)
SEARCH = SearchConfig(
    preset="faults",
    candidates=(Candidate(TINY, choices={"learning_rate": (1e-3, 2e-3, 4e-3)}),),
    searcher="grid",
    scheduler="fifo",
    keep_per_family=1,
    max_failures=1,
)


@dataclass(frozen=True)
class Fault:
    """What happens before a step of a trial, which is named by its learning rate; `write` happens to the driver.

    hold: it waits until a file named `go` lies in the folder of faults. kill: its process dies. memory: none is left.
    diverge: its gradient becomes infinite. write: the driver dies when it has written a file or folder that ends in `place`,
    but has not put it there yet.
    """

    kind: Literal["hold", "kill", "memory", "diverge", "write"]
    rate: float = 0.0
    step: int = 0
    times: int = 1
    rank: int = 0
    place: str = ""


class FaultySearch:
    """A search as a process group of its own, with a Ray of its own, and its log."""

    def __init__(
        self,
        folder: Path,
        data: str,
        *,
        faults: Sequence[Fault] = (),
        search: SearchConfig = SEARCH,
        storage_root: str = "",
        nodes: int = 0,
        **environment: str,
    ):
        """Starts it in `folder/run`, or in that of another storage; faults are counted in `folder/faults`.

        With `nodes` its Ray is a head without CPUs and so many nodes of one CPU each.
        """
        self.run, self._faults = folder / "run", folder / "faults"
        self._faults.mkdir(parents=True, exist_ok=True)
        (self._faults / "go").unlink(missing_ok=True)
        self._ray = tempfile.mkdtemp(prefix="vbd", dir="/tmp")  # short: its sockets lie there
        spec = {
            "data": data,
            "root": storage_root or str(folder),
            "faults": [dataclasses.asdict(fault) for fault in faults],
            "folder": str(self._faults),
            "search": dataclasses.asdict(search),
            "ray": self._ray,
            "nodes": nodes,
        }
        self._job = Job(
            [sys.executable, "-m", "tests.search.faulty_searches"],
            log=folder / "log.txt",
            cwd=ROOT,
            environment={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            | {_SPEC: json.dumps(spec)}
            | environment,
        )
        self.process = self._job.process

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._job.output

    @property
    def errors(self) -> list[str]:
        """The lines by which it told that it ended; there should be one."""
        return self._job.errors

    @property
    def tracebacks(self) -> list[str]:
        """What each traceback in its output ends with."""
        return self._job.tracebacks

    def held(self, rate: float, step: int) -> bool:
        """Whether a trial waits before a step."""
        return (self._faults / f"hold-{rate}-{step}-0").exists()

    def let_go(self) -> None:
        """Lets those go on that wait."""
        (self._faults / "go").touch()

    def lose_a_node(self) -> None:
        """Kills all of a node, at once."""
        (self._faults / "lose").touch()
        self.wait_until((self._faults / "lost").exists)

    def wait_until(self, is_so: Callable[[], bool], *, seconds: float = 240) -> None:
        """Returns when something is so; raises AssertionError when the search has ended before."""
        self._job.wait_until(is_so, seconds=seconds)

    def end(self, *, seconds: float = 300) -> int:
        """Its exit code, when it has ended by itself; all that it started is gone then."""
        try:
            return self._job.end(seconds=seconds)
        finally:
            self.kill_all()

    def kill_driver(self) -> None:
        """Kills the driver alone; its Ray and its trials find out by themselves."""
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """Kills the driver and all that it started, at once."""
        if self._job.is_running:
            self._job.kill()
        for pid in _processes_of(self._ray):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._ray, ignore_errors=True)


def _processes_of(folder: str) -> list[int]:
    """The processes of this machine whose command line names a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if folder in command:
                found.append(int(entry.name))
    return found


# ------------------------------------------------------------------------------------------------------- in its processes


def _search_from(fields: dict[str, Any]) -> SearchConfig:
    (candidate,) = fields["candidates"]
    choices = {name: tuple(values) for name, values in candidate["choices"].items()}
    base = replace(TINY, **{name: tuple(v) if isinstance(v, list) else v for name, v in candidate["base"].items()})
    return SearchConfig(**fields | {"candidates": (Candidate(base, choices=choices),)})


def search_with_faults() -> None:
    """The search that the environment tells of."""
    import ray

    from vbd.cli import _terminate
    from vbd.cluster.connect import connect
    from vbd.search.run import run_search

    spec = json.loads(os.environ[_SPEC])
    search = _search_from(spec["search"])
    hook = {"worker_process_setup_hook": "tests.search.faulty_searches.install"} if spec["faults"] else {}
    place = {"address": _start_nodes(spec)} if spec["nodes"] else _of_one_node(spec, search)
    ray.init(**place, runtime_env=hook | {"env_vars": {"PYTHONPATH": str(ROOT), _SPEC: os.environ[_SPEC]}})
    signal.signal(signal.SIGTERM, _terminate)  # as `connect` does when Ray was started there
    connect()
    _install_in_driver(spec)
    run_search(search, data=spec["data"], storage_root=spec["root"], name="run", options=RunOptions(device="cpu"))


def _of_one_node(spec: dict[str, Any], search: SearchConfig) -> dict[str, Any]:
    return {
        "address": "local",
        "num_cpus": 2,
        "include_dashboard": search.workers_per_trial > 1,  # Ray Train asks it
        "object_store_memory": 200_000_000,
        "_temp_dir": spec["ray"],
    }


def _start_nodes(spec: dict[str, Any]) -> str:
    """Starts a Ray of several nodes, and returns its address; one of them dies when a file named `lose` is there."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_TMPDIR"] = spec["ray"]
    (Path(spec["ray"]) / "ray").mkdir()
    sizes = {"object_store_memory": 100_000_000, "temp_dir": spec["ray"]}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **sizes})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(spec["nodes"])]

    def lose() -> None:
        while not (Path(spec["folder"]) / "lose").exists():
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        (Path(spec["folder"]) / "lost").touch()

    threading.Thread(target=lose, daemon=True).start()
    return cluster.address


def _install_in_driver(spec: dict[str, Any]) -> None:
    places = tuple(fault["place"] for fault in spec["faults"] if fault["kind"] == "write")
    replace_file = os.replace

    def dying_replace(source: Any, target: Any, **more: Any) -> None:
        if places and str(target).endswith(places):
            os.killpg(os.getpid(), signal.SIGKILL)
        replace_file(source, target, **more)

    os.replace = dying_replace


def install() -> None:
    """Called by Ray in each of its workers."""
    from vbd.search.tune import trial as tuning
    from vbd.training.folds import worker as run_worker
    from vbd.training.loop import TrainingRun, train

    spec = json.loads(os.environ[_SPEC])
    faults, folder = [Fault(**fields) for fields in spec["faults"]], Path(spec["folder"])
    step_of, gradients_of = TrainingRun.step, TrainingRun._gradients
    trains = False

    def train_with_faults(*values: Any, **more: Any) -> Any:
        nonlocal trains
        trains = True  # what is measured before the search is left alone
        return train(*values, **more)

    def due(kind: str, run: TrainingRun, step: int) -> Fault | None:
        for fault in faults:
            here = (fault.kind, fault.rate, fault.step, fault.rank)
            if trains and here == (kind, run.config.learning_rate, step, run.ranks.rank) and _count(folder, fault):
                return fault
        return None

    def step_with_faults(run: TrainingRun, step: int, batch: Any) -> Any:
        if due("kill", run, step):
            os.kill(os.getpid(), signal.SIGKILL)
        if due("hold", run, step):
            while not (folder / "go").exists():
                time.sleep(0.02)
        return step_of(run, step, batch)

    def gradients_with_faults(run: TrainingRun, step: int, batch: Any) -> Any:
        if due("memory", run, step):
            import torch

            raise torch.OutOfMemoryError("no memory is left")
        loss = gradients_of(run, step, batch)
        if due("diverge", run, step):
            next(weight.grad for weight in run.model.parameters() if weight.grad is not None).fill_(float("inf"))
        return loss

    TrainingRun.step, TrainingRun._gradients = step_with_faults, gradients_with_faults  # type: ignore[method-assign]
    tuning.train = run_worker.train = train_with_faults


def _count(folder: Path, fault: Fault) -> bool:
    """Whether a fault happens once more."""
    for number in range(fault.times):
        try:
            (folder / f"{fault.kind}-{fault.rate}-{fault.step}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


if __name__ == "__main__":
    from vbd.cli import main

    main(search_with_faults)
