"""A simulated cluster: Ray nodes that are processes of this machine and can be killed, paused and added; jobs that run there."""

import contextlib
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
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
# In the environment of every process of a cluster: which one it is, and which node of it.
_CLUSTER, NODE = "VBD_CLUSTER", "VBD_NODE"


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_so: Callable[[], object], what: Callable[[], str], *, seconds: float = 240) -> None:
    """Returns when something is so; else raises AssertionError with `what()`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"it never came to it: {what()}"
        time.sleep(0.02)


class Job:
    """A process with an output of its own, such as a driver, started as its user would."""

    def __init__(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]):
        """Appends what it prints to `log`."""
        self._log, self._earlier = log, log.stat().st_size if log.exists() else 0
        with open(log, "ab") as stream:
            self.process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(environment) | {"PYTHONUNBUFFERED": "1"},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_bytes()[self._earlier :].decode(errors="replace")

    @property
    def errors(self) -> list[str]:
        """The lines by which it told that it ended; there should be one."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def tracebacks(self) -> list[str]:
        """What each traceback in its output ends with, but for those of Ray's own that are no faults.

        These are the exit of a worker that Ray ended amidst some callback, and a helper of Ray that was slow to answer.
        """
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
        return [end for end in ends if not end.startswith(("SystemExit: ", "ray.exceptions.GetTimeoutError: "))]

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait_until(self, is_so: Callable[[], object], *, seconds: float = 240) -> None:
        """Returns when something is so; raises AssertionError when the job has ended before."""

        def holds() -> object:
            if found := is_so():
                return found
            # It may have ended right after it made this so.
            assert self.is_running or is_so(), f"it ended before, with {self.process.returncode}:\n{self.output}"
            return False

        wait_until(holds, lambda: self.output, seconds=seconds)

    def end(self, *, seconds: float = 300) -> int:
        """Its exit code, when it has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it never ends:\n{self.output}") from None

    def kill(self) -> None:
        """Kills it and its own process group, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Node:
    """A node: a raylet with its agents and workers."""

    def __init__(self, cluster: str, name: str, flags: Sequence[str], environment: Mapping[str, str]):
        """Starts it."""
        self.cluster, self.name, self.is_killed = cluster, name, False
        log = Path(cluster, f"{name}.log")
        marks = {_CLUSTER: cluster, NODE: name}
        command = [RAY, "start", "--block", f"--node-name={name}", *flags]
        self._job = Job(command, log=log, cwd=ROOT, environment=dict(environment) | marks)

    @property
    def log(self) -> str:
        """What `ray start` has printed."""
        return self._job.output

    @property
    def is_up(self) -> bool:
        """Whether `ray start` has not ended."""
        return self._job.is_running

    @property
    def pids(self) -> list[int]:
        """All of its processes, the workers too."""
        return pids_with(**{_CLUSTER: self.cluster, NODE: self.name})

    def pause(self) -> None:
        """From now on nothing of it runs, but its connections stay."""
        _signal(lambda: self.pids, signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on after `pause`."""
        _signal(lambda: self.pids, signal.SIGCONT)

    def kill(self) -> None:
        """Kills all of it, at once, as a machine that is switched off."""
        self.is_killed = True
        _signal(lambda: self.pids, signal.SIGSTOP)  # so that none of it notices how the others go
        _end(lambda: self.pids)
        self._job.kill()


class Nodes:
    """A cluster: a head that does no work unless it is told to, and the nodes that are added to it.

    Other Rays of this machine are left alone: folder and ports are its own. `with Nodes() as nodes` leaves no process behind.
    """

    def __init__(
        self,
        *,
        cpus: float = 0,
        resources: Mapping[str, float] | None = None,
        autoscaling: Mapping[str, Mapping[str, Any]] | None = None,
        object_store_memory: int = 100_000_000,
        **environment: str,
    ):
        """Starts the head, with so many CPUs; `environment` is that of all nodes.

        `autoscaling` names node types, each such as {"resources": {"CPU": 1}, "max_workers": 2, "labels": {...}}: Ray starts
        and ends such nodes by itself, as children of the head (VBD_NODE is "head" there, RAY_NODE_TYPE_NAME their type).
        """
        self.folder = tempfile.mkdtemp(prefix="vbd", dir="/tmp")  # short: sockets lie below
        (Path(self.folder) / "ray").mkdir()
        self._port, self._dashboard_port = free_port(), free_port()
        self._jobs: list[Job] = []
        self.nodes: list[Node] = []
        self.environment = (
            dict(os.environ)
            | {
                "RAY_TMPDIR": self.folder,
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_health_check_initial_delay_ms": "1000",
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_timeout_ms": "3000",
                "RAY_health_check_failure_threshold": "3",
                "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "RAY_memory_monitor_refresh_ms": "0",  # all nodes share one machine, with others: none is full by itself
                "RAY_ADDRESS": self.address,  # or Ray's own helpers ask the newest Ray of this machine
                "SPT_NOENV": "1",  # by default workers write their title over what /proc tells of their environment
            }
            | environment
        )
        agent = free_port()
        flags = [
            *("--head", f"--port={self._port}", f"--temp-dir={self.folder}/ray", f"--num-cpus={cpus:g}"),
            *(f"--dashboard-port={self._dashboard_port}", "--dashboard-host=127.0.0.1"),
            *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--object-store-memory={object_store_memory}", f"--resources={json.dumps(dict(resources or {}))}"),
            *("--min-worker-port=0", "--max-worker-port=0", "--num-gpus=0"),
        ]
        more = {}
        if autoscaling is not None:
            flags.append(f"--autoscaling-config={self._autoscaling_config(autoscaling)}")
            more = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        try:
            self.head = self._started("head", flags, self.environment | more)
            # The agent starts submitted jobs.
            wait_until(lambda: _answers(f"http://127.0.0.1:{agent}/api/local_raylet_healthz"), lambda: self.head.log)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """The cluster itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all of it."""
        self.close()

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is to a driver."""
        import ray.util

        return f"{ray.util.get_node_ip_address()}:{self._port}"

    @property
    def dashboard(self) -> str:
        """The address of the dashboard, to which jobs are submitted."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def working(self) -> list[Node]:
        """The nodes that were added and not killed."""
        return [node for node in self.nodes if not node.is_killed]

    @property
    def alive(self) -> list[str]:
        """Names of the nodes that Ray takes to be alive."""
        answer = json.loads(_read(f"{self.dashboard}/api/v0/nodes?detail=1") or "{}")
        rows = ((answer.get("data") or {}).get("result") or {}).get("result") or []
        return [row["node_name"] for row in rows if row["state"] == "ALIVE"]

    def add(
        self,
        *,
        cpus: float = 1,
        gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        object_store_memory: int = 100_000_000,
    ) -> Node:
        """One more node, `node-<number>`, when it is there; GPUs are only a number."""
        name = f"node-{len(self.nodes)}"
        (Path(self.folder) / name).mkdir(exist_ok=True)
        flags = [
            # A disk of its own: Ray unpacks the code of a job there, and another node would remove it from a common one.
            f"--temp-dir={self.folder}/{name}",
            *(f"--address={self.address}", f"--num-cpus={cpus:g}", f"--num-gpus={gpus:g}"),
            *(f"--resources={json.dumps(dict(resources or {}))}", f"--object-store-memory={object_store_memory}"),
            *("--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"),
        ]
        if labels:
            flags.append("--labels=" + ",".join(f"{name}={value}" for name, value in labels.items()))
        self.nodes.append(self._started(name, flags, self.environment))
        return self.nodes[-1]

    def wait_until_lost(self, node: Node) -> None:
        """Returns when Ray knows that a node is dead."""
        wait_until(lambda: node.name not in self.alive, lambda: f"{node.name} is taken to be alive")

    def start(self, command: Sequence[str], *, cwd: Path, log: str = "log.txt", **environment: str) -> Job:
        """A driver of this cluster, with its output in `cwd/log`; a command that begins with `jobs/` is one of ours."""
        whole = [sys.executable, str(ROOT / command[0]), *command[1:]] if command[0].startswith("jobs/") else command
        mine = self.environment | {_CLUSTER: self.folder, NODE: "driver"} | environment
        self._jobs.append(Job(whole, log=cwd / log, cwd=cwd, environment=mine))
        return self._jobs[-1]

    def close(self) -> None:
        """Ends every process of it."""
        for job in self._jobs:
            job.kill()
        end_processes(**{_CLUSTER: self.folder})
        shutil.rmtree(self.folder, ignore_errors=True)

    def _started(self, name: str, flags: Sequence[str], environment: Mapping[str, str]) -> Node:
        """A node when it is there. Ray gives it half a minute, which may be too little where others keep the machine busy."""
        for _ in range(6):
            node = Node(self.folder, name, flags, environment)
            wait_until(lambda node=node: not node.is_up or name in self.alive, lambda node=node: node.log)
            if node.is_up:
                return node
            node.kill()
        raise AssertionError(f"{name} does not come up:\n{node.log}")

    def _autoscaling_config(self, types: Mapping[str, Mapping[str, Any]]) -> str:
        """A file in which Ray's fake provider, whose nodes are processes of this machine, reads what nodes there may be."""
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "fake_multinode",
            "max_workers": sum(int(each.get("max_workers", 1)) for each in types.values()),
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.2,
            "provider": {
                "type": "fake_multinode",
                **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
                "gcs_address": self.address,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {"ray.head.default": head}
            | {name: {"node_config": {}, "min_workers": 0, "max_workers": 1, **each} for name, each in types.items()},
            **{name: {} for name in ("docker", "auth", "file_mounts")},
            **{
                name: []
                for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")
            },
            **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
            **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
            "file_mounts_sync_continuously": False,
        }
        path = Path(self.folder) / "autoscaling.json"
        path.write_text(json.dumps(config))
        return str(path)


class Proxy:
    """Stands between a store and its clients, who find it shut for a while, or cut off in the middle."""

    def __init__(self, port: int):
        """The store listens at `port` of this machine."""
        self._store, self.port = port, free_port()
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._left: int | None = None
        self.requests: list[str] = []  # first lines: "PUT /bucket/key HTTP/1.1"
        self.open()

    @property
    def url(self) -> str:
        """What AWS_ENDPOINT_URL is to its clients."""
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Lets clients in."""
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuses clients, and cuts off those that are in."""
        assert self._listener is not None
        _close(self._listener, *self._open)
        self._open.clear()

    def cut_uploads_after(self, size: int | None) -> None:
        """From now on a connection that uploads is cut after so many bytes of content; None: no more."""
        self._left = size

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                store = socket.create_connection(("127.0.0.1", self._store))
            except OSError:
                return
            self._open += [client, store]
            threading.Thread(target=self._pass_up, args=(client, store), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(store, client), daemon=True).start()

    def _pass_up(self, client: socket.socket, store: socket.socket) -> None:
        uploaded: int | None = None  # bytes since the head of an upload; None outside of one
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 14):
                for line in data.split(b"\r\n"):
                    if line.endswith(b" HTTP/1.1"):
                        self.requests.append(line.decode(errors="replace"))
                        uploaded = 0 if line.startswith((b"PUT ", b"POST ")) else None
                if uploaded is not None and self._left is not None:
                    uploaded += len(data)
                    if uploaded > self._left:
                        store.sendall(data[: len(data) // 2])
                        _close(client, store)
                        return
                store.sendall(data)
            store.shutdown(socket.SHUT_WR)

    def _pass_on(self, store: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := store.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


def pids_with(**environment: str) -> list[int]:
    """The processes of this machine that were started with such an environment."""
    wanted = {f"{name}={value}".encode() for name, value in environment.items()}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
    return found


def end_processes(**environment: str) -> None:
    """Kills the processes of this machine that were started with such an environment; returns when none is left."""
    _signal(lambda: pids_with(**environment), signal.SIGSTOP)  # so that none of it notices how the others go
    _end(lambda: pids_with(**environment))


def _signal(pids: Callable[[], list[int]], what: signal.Signals) -> None:
    """Sends a signal to some processes, and to those that they have started meanwhile."""
    told: set[int] = set()
    while new := set(pids()) - told:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)
        told |= new


def _end(pids: Callable[[], list[int]]) -> None:
    """Kills some processes; returns when none is left."""

    def is_over() -> bool:
        left = pids()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(is_over, lambda: f"processes that cannot be killed: {pids()}", seconds=60)


def _read(url: str) -> str:
    """What a server answers; "" when it does not."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def _answers(url: str) -> bool:
    return bool(_read(url))
