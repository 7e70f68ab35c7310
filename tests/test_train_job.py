"""jobs/train.py as its user runs it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mistakes import mistake_of
from vbd import storage
from vbd.config import RunOptions
from vbd.data.prepared import open_dataset, read_truths
from vbd.evaluation.average_precision import evaluate
from vbd.models.weights import load_tensors
from vbd.training.checkpoint import read_info
from vbd.training.folds.plan import read_plan
from vbd.training.loop import train
from vbd.training.members import read_members

ROOT = Path(__file__).parent.parent
JOB = ROOT / "jobs" / "train.py"
SHORT = ("image_size=64", "batch_size=4", "steps=16", "warmup_steps=1", "report_every=2", "learning_rate=2e-3")


def _flags(prepared: str, *more: str) -> list[str]:
    return ["--data", prepared, "--output", "out", *(word for item in SHORT for word in ("--set", item)), *more]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--config", "a.json", "--second-stage", "b"], "--config and --second-stage: configurations come from one"),
        (["--config", "/nowhere.json"], "/nowhere.json: no such file"),
        (["--run", "/nowhere"], "/nowhere: no leaderboard.json"),
        (["--second-stage", "/nowhere"], "/nowhere: no train.json"),
        (["--weights", "/nowhere.pt"], "weights /nowhere.pt: no such file"),
        (["--set", "stepz=3"], "--set stepz=3: want name=value with one of the names"),
        (["--workers", "5"], "--workers 5: more than the 4 images of a batch of yolox-1"),
        (["--folds", "9"], "--folds 9: want all, or some of 0, 1, 2"),
        (["--keep", "0"], "--keep 0: want 1 to 1000"),
        (["--loader-workers", "-1"], "--loader-workers -1: want 0 to 256"),
        (["--resume"], "/out holds, without --data; give the whole command instead"),
    ],
)
def test_a_wrong_command_is_told_in_one_line_before_ray_is_started(
    more: list[str],
    told: str,
    prepared: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in mistake_of("train", monkeypatch, capsys, *_flags(prepared, *more))
    assert list(tmp_path.iterdir()) == []


def test_the_dataset_and_something_to_resume_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--data: give the prepared dataset" in mistake_of("train", monkeypatch, capsys, "--output", "out")
    assert "out: no train.json" in mistake_of("train", monkeypatch, capsys, "--output", "out", "--resume")


def _run(command: list[str], cwd: Path) -> str:
    """What a job prints when all goes well."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # The tests' own Ray runs beside the job's: Ray's actors must not mistake one for the other.
    for words in ("Traceback", "restart will fail", "is deprecated"):
        assert words not in done.stdout + done.stderr
    return done.stdout


def _kill_after_the_first_checkpoint(command: list[str], cwd: Path) -> None:
    with open(cwd / "killed.log", "w") as log:
        job = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        while not list(cwd.glob("out/runs/*/checkpoint_*/config.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    assert not list(cwd.glob("out/runs/*/finished.json")), (cwd / "killed.log").read_text()


@pytest.mark.slow  # three starts of Ray
def test_a_killed_job_goes_on_and_ends_with_the_weights_of_an_undisturbed_one_and_its_folds_make_an_ensemble(
    prepared: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(JOB), *_flags(prepared, "--folds", "all")]
    _kill_after_the_first_checkpoint(command, tmp_path)
    resumed = _run([sys.executable, str(JOB), "--output", "out", "--resume"], tmp_path)

    dataset, plan = open_dataset(prepared), read_plan(str(tmp_path / "out"))
    last: dict[str, torch.Tensor] = {}

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        last.update(load_tensors(f"{folder}/model.pt"))

    train(plan.config_of("yolox-1", 0), dataset, options=RunOptions(device="cpu"), report=report)
    newest = sorted((tmp_path / "out" / "runs" / "yolox-1-fold0").glob("checkpoint_*/"))
    assert [read_info(str(folder)).step for folder in newest] == [14, 16]  # --keep 2
    again = load_tensors(str(newest[-1] / "model.pt"))
    assert last.keys() == again.keys()
    assert all(torch.equal(last[name], again[name]) for name in last)

    (member,) = read_members(str(tmp_path / "out"), dataset)
    found, truths = member.out_of_fold(), read_truths(dataset, "train")
    assert [each.image_id for each in found] == [truth.image_id for truth in truths]
    assert f"yolox-1: out-of-fold map_40_findings {evaluate(found, truths).map_40_findings:.4f}, 95 %" in resumed
    assert "over 60 images (synthetic data)" in resumed
    assert resumed.count("yolox-1-fold") >= 6  # a line when it ends, and one in the table, for each fold

    other = subprocess.run([*command, "--set", "seed=3"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "another training (yolox-1.seed was 0, is 3)" in other.stderr
    _run([sys.executable, str(ROOT / "jobs" / "ensemble.py"), "--run", "out", "--data", prepared], tmp_path)
    assert len(storage.read_csv(str(tmp_path / "out" / "submission.csv"))) == 12
