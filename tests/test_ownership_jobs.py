"""Two jobs in one folder, as their users start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mistakes import mistake_of
from tests.nodes import ROOT, Job
from tests.owners import working_in
from vbd import storage
from vbd.data.prepared import open_dataset
from vbd.storage.ownership import OWNER


@pytest.mark.parametrize("job", ["tune", "prepare", "prepare --policy", "sample", "train"])
def test_a_job_is_refused_where_another_one_works_before_ray_is_started(
    job: str,
    prepared: str,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, films = str(tmp_path / "run"), str(phantom)
    flags = {
        "tune": ("smoke", "--storage", str(tmp_path), "--name", "run"),
        "prepare": ("--source", films, "--output", run),
        "prepare --policy": ("--source", films, "--output", run, "--policy", "B"),
        "sample": ("--output", run),
        "train": ("--output", run, "--data", prepared),
    }[job]
    with working_in(run) as told:
        assert mistake_of(job.split()[0], monkeypatch, capsys, *flags) == f"error: {told}"
        assert storage.list_names(run) == [OWNER]


@pytest.mark.slow  # a job of Ray to its end, and two that do not come to it
def test_the_second_of_two_jobs_is_refused_and_the_place_of_a_killed_one_is_taken_at_once(
    phantom: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), "--source", str(phantom), "--output", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    out = tmp_path / "out"

    def start(name: str) -> Job:
        job = Job([*command, "--image-size", "64"], log=tmp_path / f"{name}.txt", cwd=tmp_path, environment=environment)
        job.wait_until(lambda: (out / OWNER).exists() and str(job.process.pid) in (out / OWNER).read_text())
        return job

    start("killed").kill()
    assert (out / OWNER).exists()
    first = start("first")
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert first.is_running, first.output
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert line.startswith(f"error: {out}: prepare (process {first.process.pid} on ")
    assert line.endswith(" UTC; wait until it ends, stop it, or choose another folder")
    assert first.end() == 0, first.output
    assert "waiting" not in first.output
    assert open_dataset(str(out)).counts["train_images"] == 60
    assert not (out / OWNER).exists()
