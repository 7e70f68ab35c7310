"""jobs/prepare.py as its user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_raw_films_become_an_augmented_dataset_in_one_command(phantom: Path, tmp_path: Path) -> None:
    flags = ("--source", str(phantom), "--output", "out", "--image-size", "64", "--folds", "3", "--policy", "D")
    first = run(*flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "competition layout, 60 train and 12 test images" in first.stdout
    assert "prepare: 72/72 images" in first.stdout
    assert first.stdout.splitlines()[-2].startswith("out: policy D, ")
    assert json.loads(first.stdout.splitlines()[-1]) | {"seconds": 0} == {
        **{"job": "prepare", "exit": 0, "seconds": 0, "output": str(tmp_path / "out")},
        **{"prepare_images": 72, "prepare_refused": 0, "policy_images": 60, "policy_pictures": 72},
    }
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 10_000
    again = run(*flags, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "up to date" in again.stdout
    assert again.stdout.splitlines()[-2] == first.stdout.splitlines()[-2]


def test_a_stopped_job_says_so_and_goes_on_when_run_again(phantom: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), "--source", str(phantom), "--output", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "plan.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143, (tmp_path / "log").read_text()
    assert "interrupted; the same command goes on from here" in (tmp_path / "log").read_text()
    assert not (tmp_path / "out" / "dataset.json").exists()
    again = run("--source", str(phantom), "--output", "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "60 training images of 512 px" in again.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--source", "nowhere", "--output", "out"), "nowhere: no such folder"),
        (("--source", "{phantom}", "--output", "out", "--min-readers", "0"), "--min-readers 0: want 1 to 1000"),
        (("--source", "{phantom}", "--output", "out", "--readers", "R99"), "--readers R99: no such reader"),
        (("--source", "{phantom}", "--output", "out", "--max-rejects", "-1"), "--max-rejects -1: want 0 to"),
        (("--source", "{phantom}", "--output", "/dev/null/out"), "/dev/null/out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    flags: tuple[str, ...], told: str, phantom: Path, tmp_path: Path
) -> None:
    done = run(*(flag.format(phantom=phantom) for flag in flags), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not (tmp_path / "out").exists()
