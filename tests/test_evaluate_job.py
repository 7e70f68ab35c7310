"""jobs/evaluate.py as its user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.browser import check_figures, open_page
from tests.reports.predictions import kept
from vbd import storage
from vbd.data.prepared import open_dataset, read_truths
from vbd.records import Detections, Truth, detections_to_table

ROOT = Path(__file__).parent.parent


def run(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def seen(truth: Truth, *, share: float, rng: np.random.Generator) -> Detections:
    """What a detector of some skill finds in an image: a share of its findings, and one false box."""
    height, width = truth.original_hw
    kept_rows = rng.random(len(truth.labels)) < share
    boxes = np.concatenate([truth.boxes[kept_rows], [[0, 0, width / 9, height / 9]]]).astype(np.float32)
    labels = np.append(truth.labels[kept_rows], rng.integers(14))
    scores = np.append(rng.uniform(0.4, 1, kept_rows.sum()), rng.uniform(0.1, 0.6)).astype(np.float32)
    order = np.argsort(-scores)
    normal = float(rng.uniform(0.5, 1) if not len(truth.labels) else rng.uniform(0, 0.6))
    return Detections(truth.image_id, boxes[order], scores[order], labels[order], no_finding=normal)


def detections_of(data: str, *, share: float, seed: int) -> list[Detections]:
    rng = np.random.default_rng(seed)
    return [seen(truth, share=share, rng=rng) for truth in read_truths(open_dataset(data), "train")]


@pytest.fixture
def predictions(prepared: str, tmp_path: Path) -> Path:
    """good.parquet finds nine of ten findings, poor.parquet every second."""
    for name, share in (("good", 0.9), ("poor", 0.5)):
        table = detections_to_table(detections_of(prepared, share=share, seed=1))
        storage.write_table(str(tmp_path / f"{name}.parquet"), table)
    return tmp_path


def test_predictions_become_a_table_json_and_a_page(prepared: str, predictions: Path) -> None:
    done = run(
        *("--predictions", "good.parquet", "--data", prepared, "--against", "poor.parquet", "--replicates", "100"),
        *("--json", "out/scores.json", "--html", "out/scores.html"),
        cwd=predictions,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first.startswith("good.parquet against the folds 0, 1, 2 of ")
    assert "synthetic data" in first
    for name in ("map_40 ", "coco_ap50 ", "Cardiomegaly ", "3 readers ", "large size ", "all findings "):
        assert any(line.startswith(name) for line in lines), name
    (verdict,) = [line for line in lines[lines.index("minus poor.parquet, on the same images") :] if "map_40_f" in line]
    assert verdict.endswith("better")
    content = json.loads((predictions / "out" / "scores.json").read_text())
    assert (content["schema"], content["synthetic"], content["part"]) == (2, True, "folds 0, 1, 2")
    assert content["scores"]["map_40_findings"] > content["against"]["scores"]["map_40_findings"]
    check_figures(open_page(predictions / "out" / "scores.html", predictions / "profile"))


def test_the_members_of_a_run_are_scored(prepared: str, tmp_path: Path) -> None:
    skills = {"yolox-1": [detections_of(prepared, share=0.5, seed=1)]}
    skills |= {"retinanet-1": [detections_of(prepared, share=0.9, seed=2)]}
    kept(tmp_path / "run" / "best", skills, dataset=open_dataset(prepared).fingerprint)
    done = run("--predictions", "run", "--data", prepared, "--replicates", "0", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run/best: retinanet-1, the best of them" in done.stdout
    assert "yolox-1: run/best/yolox-1-fold0/out_of_fold.parquet" in done.stdout


def test_a_submission_with_defects_is_exit_code_1(prepared: str, tmp_path: Path) -> None:
    lines = (Path(prepared) / "sample_submission.csv").read_text().splitlines()
    (tmp_path / "good.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "short.csv").write_text("\n".join(lines[:-1]) + "\n")
    good, short = (
        run("--predictions", name, "--data", prepared, "--replicates", "0", cwd=tmp_path)
        for name in ("good.csv", "short.csv")
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert "check: no defects" in good.stdout
    assert (short.returncode, short.stderr) == (1, "")
    assert "check: 1 defect(s)" in short.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--predictions", "nowhere.parquet"), "nowhere.parquet: no such file"),
        (("--predictions", "good.parquet", "--part", "test"), "none of its images is in the test part"),
        (("--predictions", "good.parquet", "--part", "9"), "no fold 9; it has folds 0 to 2"),
        (("--predictions", "good.parquet", "--replicates", "-1"), "--replicates -1: want 0"),
        (("--predictions", "good.parquet", "--score-threshold", "2"), "--score-threshold 2: want 0 to 1"),
        (("--predictions", "good.parquet", "--against", "none.csv"), "none.csv: no such file"),
        (("--predictions", "good.parquet", "--html", "/dev/null/x.html"), "/dev/null/x.html: cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    flags: tuple[str, ...], told: str, prepared: str, predictions: Path
) -> None:
    done = run(*flags, "--data", prepared, *(() if "--replicates" in flags else ("--replicates", "0")), cwd=predictions)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line
