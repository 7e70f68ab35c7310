"""`ray job submit` against a real head, as a user would run it."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.nodes import RAY, ROOT, Nodes
from vbd.search.kept.leaderboard import read_leaderboard

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head that works itself. Gives address and environment."""
    with Nodes(cpus=2, object_store_memory=200_000_000) as nodes:
        yield nodes.dashboard, nodes.environment


def _submit(
    head: tuple[str, dict[str, str]], *command: str, name: str, flags: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    address, environment = head
    where = ("--address", address, "--submission-id", name, "--working-dir", ".", *flags)
    return subprocess.run(
        [RAY, "job", "submit", *where, "--", *command],
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
    assert '"exit": 0' in done.stdout
    assert '"prepare_images": 72' in done.stdout
    assert (tmp_path / "out" / "dataset.json").exists()
    job = json.load(urllib.request.urlopen(f"{head[0]}/api/jobs/prepare", timeout=10))
    assert job["status"] == "SUCCEEDED"
    assert "jobs/prepare.py" in job["entrypoint"]


def test_a_mistake_fails_the_job_with_its_one_line(head: tuple[str, dict[str, str]]) -> None:
    done = _submit(head, "python", "jobs/prepare.py", "--source", "/nowhere", "--output", "/tmp/x", name="mistake")
    assert done.returncode != 0
    assert "error: /nowhere" in done.stdout
    assert '"exit": 2, "job": "prepare"' in done.stdout
    assert "Traceback" not in done.stdout
    job = json.load(urllib.request.urlopen(f"{head[0]}/api/jobs/mistake", timeout=10))
    assert job["driver_exit_code"] == 2


def test_a_variable_of_the_runtime_environment_reaches_driver_and_workers(head: tuple[str, dict[str, str]]) -> None:
    """As docs/jobs.md advises for the messages of Ray's autoscaler; the job has a value of its own for the same variable."""
    code = (
        "import os; from vbd.cli import connect; connect(); import ray; "
        "read = lambda: os.environ['RAY_SCHEDULER_EVENTS']; "
        "print('driver', read(), 'worker', ray.get(ray.remote(read).remote()))"
    )
    flags = ("--runtime-env-json", json.dumps({"env_vars": {"RAY_SCHEDULER_EVENTS": "1"}}))
    done = _submit(head, "python", "-c", code, name="variable", flags=flags)
    assert "driver 1 worker 1\n" in done.stdout, done.stdout


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
    text = json.load(urllib.request.urlopen(log, timeout=10))["logs"]
    assert "interrupted; the same command goes on from here" in text
    told = json.loads(text.splitlines()[-1])
    assert (told["job"], told["exit"], told["trials"]) == ("tune", 143, {"unfinished": len(trials)})
