"""`ray job submit` against a real head, as a user would run it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbd.search.leaderboard import read_leaderboard

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")

pytestmark = pytest.mark.slow


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head of its own, with its own folder: other Rays of this machine are left alone. Gives address and environment."""
    folder = tempfile.mkdtemp(prefix="vbd", dir="/tmp")
    (Path(folder) / "ray").mkdir()
    environment = os.environ | {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    # Every port is our own: another Ray on this machine may hold the defaults.
    port, agent_port = _free_port(), _free_port()
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={_free_port()}", f"--temp-dir={folder}/ray"),
            *(f"--dashboard-port={port}", "--dashboard-host=127.0.0.1", "--object-store-memory=200000000"),
            *(f"--ray-client-server-port={_free_port()}", f"--dashboard-agent-listen-port={agent_port}"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/jobs/")
        _wait_for(f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz")  # the agent is what starts a job
        yield address, environment
    finally:
        process.send_signal(signal.SIGTERM)  # with --block it ends everything that it started
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"nothing answers at {url}")


def _submit(head: tuple[str, dict[str, str]], *command: str, name: str) -> subprocess.CompletedProcess[str]:
    address, environment = head
    return subprocess.run(
        [RAY, "job", "submit", "--address", address, "--submission-id", name, "--working-dir", ".", "--", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_submitted_job_streams_its_log_and_shows_in_the_dashboard(
    head: tuple[str, dict[str, str]], phantom: Path, tmp_path: Path
) -> None:
    command = ("python", "jobs/prepare.py", "--source", str(phantom), "--output", str(tmp_path / "out"))
    done = _submit(head, *command, "--image-size", "64", "--folds", "3", name="prepare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "72/72 images" in done.stdout
    assert "(synthetic)" in done.stdout
    assert (tmp_path / "out" / "dataset.json").exists()
    job = json.load(urllib.request.urlopen(f"{head[0]}/api/jobs/prepare", timeout=10))
    assert job["status"] == "SUCCEEDED"
    assert "jobs/prepare.py" in job["entrypoint"]


def test_a_mistake_fails_the_job_with_its_one_line(head: tuple[str, dict[str, str]]) -> None:
    done = _submit(head, "python", "jobs/prepare.py", "--source", "/nowhere", "--output", "/tmp/x", name="mistake")
    assert done.returncode != 0
    assert "error: /nowhere" in done.stdout
    assert "Traceback" not in done.stdout
    job = json.load(urllib.request.urlopen(f"{head[0]}/api/jobs/mistake", timeout=10))
    assert job["driver_exit_code"] == 2


def test_neither_the_environment_nor_data_nor_runs_travel_with_a_job(head: tuple[str, dict[str, str]]) -> None:
    done = _submit(head, "python", "-c", "import os; print('here:', *sorted(os.listdir()))", name="listing")
    names = next(line for line in done.stdout.splitlines() if line.startswith("here: ")).split()[1:]
    assert {"jobs", "vbd", "pyproject.toml", "cluster.yaml"} <= set(names)
    assert not {".venv", ".git", "data", "runs"} & set(names)


def test_a_search_that_is_stopped_tells_what_it_has_before_it_is_killed(
    head: tuple[str, dict[str, str]], prepared: str, tmp_path: Path
) -> None:
    address, environment = head
    where = ("--address", address, "--submission-id", "search")
    # By default three seconds, which suffice where the machine is not busy with other tests.
    patience = ("--runtime-env-json", json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}))
    submit = (RAY, "job", "submit", *where, *patience, "--no-wait", "--working-dir", ".")
    flags = ("--data", prepared, "--storage", str(tmp_path), "--name", "run", "--device", "cpu", "--families", "yolox")
    small = ("image_size=64", "variant=nano", "batch_size=4", "report_every=3", "pretrained=false")
    command = ("python", "jobs/tune.py", "search", *flags, "--trials", "2", "--steps", "9000")
    settings = [f"--set={one}" for one in small]
    subprocess.run([*submit, "--", *command, *settings], cwd=ROOT, env=environment, capture_output=True, check=True)
    log = f"{address}/api/jobs/search/logs"
    state = f"{address}/api/jobs/search"
    while not list(tmp_path.glob("run/trials/*/step-*/config.json")):
        if json.load(urllib.request.urlopen(state, timeout=10))["status"] not in ("PENDING", "RUNNING"):
            pytest.fail(f"it has ended:\n{json.load(urllib.request.urlopen(log, timeout=10))['logs']}")
        time.sleep(0.5)
    subprocess.run(
        [RAY, "job", "stop", "--address", address, "search"], env=environment, capture_output=True, check=True
    )
    assert json.load(urllib.request.urlopen(state, timeout=10))["status"] == "STOPPED"
    trials = read_leaderboard(str(tmp_path / "run")).trials
    assert {trial.status for trial in trials} == {"unfinished"}
    assert any(trial.history for trial in trials)
    assert (
        "interrupted; the same command goes on from here" in json.load(urllib.request.urlopen(log, timeout=10))["logs"]
    )
