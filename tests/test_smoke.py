"""The main job as its user runs it, and what happens to it when its machine is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from vbd import storage
from vbd.data.prepared import image_sizes, open_dataset, read_truths, sample_submission_ids
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.score import score_of
from vbd.records import detections_from_table
from vbd.search.kept.leaderboard import read_leaderboard
from vbd.submission.file import write_submission

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def _tune(prepared: str, root: Path, *flags: str) -> list[str]:
    job = [sys.executable, str(ROOT / "jobs" / "tune.py"), "smoke", "--data", prepared, "--storage", str(root)]
    return [*job, "--name", "run", *flags]


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=800, check=False)


def _job(name: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / name), *flags]


@pytest.fixture(scope="module")
def killed_and_resumed(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search whose driver is killed after its first checkpoints, and that the same command takes up."""
    folder = tmp_path_factory.mktemp("tune")
    command = _tune(prepared, folder, "--steps", "8", "--trials", "1")
    with open(folder / "first.log", "w") as log:
        first = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        trials = folder / "run" / "trials"
        deadline = time.monotonic() + 300
        while not list(trials.glob("*/step-*/config.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert not (folder / "run" / "leaderboard.json").exists(), (folder / "first.log").read_text()
    second = _run(command, folder)
    assert second.returncode == 0, second.stdout + second.stderr
    return folder / "run", second.stdout


def test_the_same_command_goes_on_after_the_driver_was_killed(killed_and_resumed: tuple[Path, str]) -> None:
    run, output = killed_and_resumed
    assert "going on with the search" in output
    board = read_leaderboard(str(run))
    assert sorted(trial.config.detector for trial in board.trials) == [
        "classifier",
        "efficientdet",
        "faster_rcnn",
        "yolox",
    ]
    assert {trial.status for trial in board.trials} == {"finished"}
    assert all(trial.history[-1]["step"] == 8 for trial in board.trials)


def test_the_submission_is_whole_and_evaluate_finds_nothing_wrong(
    killed_and_resumed: tuple[Path, str], prepared: str
) -> None:
    run, output = killed_and_resumed
    table = pd.read_csv(run / "submission.csv")
    assert table["image_id"].tolist() == sample_submission_ids(open_dataset(prepared))
    assert "(checked)" in output
    done = _run(_job("evaluate.py", "--predictions", str(run / "submission.csv"), "--data", prepared), run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "synthetic" in done.stdout.lower()
    printed = float(re.search(r"map_40 with No finding.*test ([\d.]+)", output)[1])  # type: ignore[index]
    assert f"{printed:.3f}" in done.stdout or f"{printed:.4f}" in done.stdout


def test_a_leaderboard_score_follows_from_its_checkpoint(killed_and_resumed: tuple[Path, str], prepared: str) -> None:
    run, _ = killed_and_resumed
    truths = read_truths(open_dataset(prepared), 0)
    for trial in read_leaderboard(str(run)).trials:
        found = detections_from_table(storage.read_table(storage.join(trial.checkpoint, "out_of_fold.parquet")))
        assert score_of(trial.config.detector, evaluate(found, truths)) == pytest.approx(trial.score, abs=1e-9)


def test_the_jobs_after_the_search_work_on_its_folder(
    killed_and_resumed: tuple[Path, str], prepared: str, phantom: Path, tmp_path: Path
) -> None:
    run, _ = killed_and_resumed
    report = _run(
        _job("report.py", "--run", str(run), "--output", str(tmp_path / "r.html"), "--data", prepared), tmp_path
    )
    assert report.returncode == 0, report.stderr
    assert "synthetic" in (tmp_path / "r.html").read_text().lower()
    checkpoint = str(run / "best" / "yolox-1")
    images = str(phantom / "test")
    done = _run(_job("predict.py", "--checkpoint", checkpoint, "--images", images, "--output", "out"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(detections_from_table(storage.read_table(str(tmp_path / "out" / "detections.parquet")))) == 12
    before = (run / "submission.csv").read_bytes()
    again = _run(
        _job("ensemble.py", "--run", str(run), "--data", prepared, "--output", "again.csv", "--html", "e.html"),
        tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.csv").read_bytes() == before
    assert "synthetic" in (tmp_path / "e.html").read_text().lower()


def test_the_ensemble_finds_again_what_it_submitted(
    killed_and_resumed: tuple[Path, str], prepared: str, tmp_path: Path
) -> None:
    run, _ = killed_and_resumed
    done = _run(_job("predict.py", "--ensemble", str(run), "--images", prepared, "--output", "out"), tmp_path)
    assert done.returncode == 0, done.stderr
    found = detections_from_table(storage.read_table(str(tmp_path / "out" / "ensemble.parquet")))
    dataset = open_dataset(prepared)
    ids, sizes = sample_submission_ids(dataset), image_sizes(dataset, "test")
    write_submission(found, str(tmp_path / "again.csv"), image_ids=ids, original_hw=sizes)
    assert (tmp_path / "again.csv").read_bytes() == (run / "submission.csv").read_bytes()


def test_a_run_folder_of_another_search_or_dataset_is_refused(
    killed_and_resumed: tuple[Path, str], prepared: str, tmp_path: Path
) -> None:
    run, _ = killed_and_resumed
    other = _run(_tune(prepared, run.parent, "--steps", "12", "--trials", "1"), tmp_path)
    assert other.returncode == 2
    assert "another search (candidates[0].base" in other.stderr
    manifest = storage.read_json(f"{prepared}/dataset.json")
    shutil.copytree(prepared, tmp_path / "moved")
    storage.write_json(str(tmp_path / "moved" / "dataset.json"), manifest | {"fingerprint": "0" * 16})
    foreign = _run(_tune(str(tmp_path / "moved"), run.parent, "--steps", "8", "--trials", "1"), tmp_path)
    assert foreign.returncode == 2
    assert "a search on dataset" in foreign.stderr
    assert "Traceback" not in foreign.stderr + other.stderr


def test_the_best_configuration_trains_on_two_workers_and_its_folds_make_an_ensemble(
    killed_and_resumed: tuple[Path, str], prepared: str, tmp_path: Path
) -> None:
    run, _ = killed_and_resumed
    flags = (
        "--run",
        str(run),
        "--data",
        prepared,
        "--folds",
        "0,1",
        "--set",
        "steps=4",
        "--workers",
        "2",
        "--families",
        "yolox",
    )
    done = _run(_job("train.py", *flags, "--output", "folds"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    members = storage.read_json(str(tmp_path / "folds" / "manifest.json"))["members"]
    assert [member["folders"] for member in members] == [["yolox-1-fold0", "yolox-1-fold1"]]
    ensemble = _run(_job("ensemble.py", "--run", "folds", "--data", prepared), tmp_path)
    assert ensemble.returncode == 0, ensemble.stdout + ensemble.stderr
    assert len(pd.read_csv(tmp_path / "folds" / "submission.csv")) == 12
