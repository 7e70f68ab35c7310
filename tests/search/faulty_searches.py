"""A small search in a process of its own, and what befalls it there: `python -m tests.search.faulty_searches`."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vbd.config import Candidate, RunOptions, SearchConfig, TrainConfig

ROOT = Path(__file__).parents[2]
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
    write: the driver dies when it has written a file or folder that ends in `place`, but has not put it there yet.
    """

    kind: Literal["hold", "kill", "memory", "write"]
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
        self._log = folder / "log.txt"
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
        self._earlier = self._log.stat().st_size if self._log.exists() else 0
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.search.faulty_searches"],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
                | {_SPEC: json.dumps(spec), "PYTHONUNBUFFERED": "1"}
                | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_bytes()[self._earlier :].decode(errors="replace")

    @property
    def tracebacks(self) -> list[str]:
        """What each traceback in its output ends with, but for the exit of a worker that Ray ended amidst some callback."""
        by_writer: dict[str, list[str]] = {}
        for line in re.sub(r"\x1b\[\d+m", "", self.output).splitlines():
            parts = re.match(r"(\(\S+ pid=\d+[^)]*\) )?(.*)", line)
            assert parts is not None
            by_writer.setdefault(parts[1] or "", []).append(parts[2])
        ends = [
            next((end for end in lines[place + 1 :] if not end.startswith(" ")), "")
            for lines in by_writer.values()
            for place, line in enumerate(lines)
            if line.startswith("Traceback")
        ]
        return [end for end in ends if not end.startswith("SystemExit: ")]

    @property
    def errors(self) -> list[str]:
        """The lines by which it told that it ended; there should be one."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

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
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, f"it ended before, with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"it never came to it:\n{self.output}"
            time.sleep(0.02)

    def end(self, *, seconds: float = 300) -> int:
        """Its exit code, when it has ended by itself; all that it started is gone then."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it never ends:\n{self.output}") from None
        finally:
            self.kill_all()

    def kill_driver(self) -> None:
        """Kills the driver alone; its Ray and its trials find out by themselves."""
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """Kills the driver and all that it started, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pid in _processes_of(self._ray):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._ray, ignore_errors=True)


class Proxy:
    """Stands between a store and its clients, who find it shut for a while."""

    def __init__(self, port: int):
        """The store listens at `port` of this machine."""
        self._store = port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        """Lets clients in."""
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuses clients, and cuts off those that are in."""
        assert self._listener is not None
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                store = socket.create_connection(("127.0.0.1", self._store))
            except OSError:
                return
            self._open += [client, store]
            for one, other in ((client, store), (store, client)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


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

    from vbd.cli import _terminate, connect
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
    from vbd.search import tuning
    from vbd.training import run_worker
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
        return gradients_of(run, step, batch)

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
