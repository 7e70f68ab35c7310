"""jobs/evaluate.py as its user runs it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.browser import check_figures, open_page
from tests.reports.predictions import kept
from tests.search.trials import config_of, ended_trial
from vbd import storage
from vbd.data.prepared import open_dataset, read_truths
from vbd.records import Detections, Trial, Truth, detections_to_table
from vbd.search.kept.leaderboard import Leaderboard, ranked, write_leaderboard
from vbd.search.kept.trial import TrialFolder

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
    page = (predictions / "out" / "scores.html").read_text()
    assert "These predictions are better than poor.parquet: " in page
    assert str(predictions) not in page
    check_figures(open_page(predictions / "out" / "scores.html", predictions / "profile"))


def test_the_members_of_a_run_are_scored(prepared: str, tmp_path: Path) -> None:
    skills = {"yolox-1": [detections_of(prepared, share=0.5, seed=1)]}
    skills |= {"retinanet-1": [detections_of(prepared, share=0.9, seed=2)]}
    kept(tmp_path / "run" / "best", skills, dataset=open_dataset(prepared).fingerprint)
    done = run("--predictions", "run", "--data", prepared, "--replicates", "0", "--html", "x.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run/best: retinanet-1, the best of them" in done.stdout.splitlines()
    assert "yolox-1: run/best/yolox-1-fold0/out_of_fold.parquet" in done.stdout.splitlines()
    page = (tmp_path / "x.html").read_text()
    assert "The rest of this page is about run/best: retinanet-1, the best of them." in page
    assert str(tmp_path) not in page


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


def test_a_submission_is_examined(prepared: str, tmp_path: Path) -> None:
    lines = (Path(prepared) / "sample_submission.csv").read_text().splitlines()
    (tmp_path / "good.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "bad.csv").write_text("\n".join(["ID,TARGET", *lines[1:-1]]) + "\n")
    good, bad = (
        run("--check", name, "--data", prepared, "--json", "out/found.json", cwd=tmp_path)
        for name in ("good.csv", "bad.csv")
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-2] == "no defects"
    assert (bad.returncode, bad.stderr) == (1, "")
    assert "2 kinds of defects in 2 places" in bad.stdout
    content = json.loads((tmp_path / "out" / "found.json").read_text())
    assert [defect["kind"] for defect in content["defects"]] == ["header", "missing_image"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--check", "nowhere.csv"), "nowhere.csv: no such file"),
        (("--check", "good.parquet"), "good.parquet: not a text file; a submission is a csv"),
        (("--check", "good.parquet", "--part", "9"), "no images in part 9"),
        (("--check", "a.csv", "--html", "a.html"), "--html belongs to --predictions; leave it out"),
        (("--check", "a.csv", "--device", "cpu"), "--device belongs to --run; leave it out"),
        (("--check", "a.csv", "--predictions", "b.csv"), "both are given of --predictions and --check"),
    ],
)
def test_what_cannot_be_examined_is_one_line_and_exit_code_2(
    flags: tuple[str, ...], told: str, prepared: str, predictions: Path
) -> None:
    done = run(*flags, "--data", prepared, cwd=predictions)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--predictions", "nowhere.parquet"), "nowhere.parquet: no such file"),
        (("--predictions", "good.parquet", "--part", "test"), "none of its images is in the test part"),
        (("--predictions", "good.parquet", "--part", "9"), "no fold 9; it has folds 0 to 2"),
        (("--predictions", "good.parquet", "--replicates", "-1"), "--replicates -1: want 0"),
        (("--predictions", "good.parquet", "--score-threshold", "2"), "--score-threshold 2.0: want 0 to 1"),
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


# ---------------------------------------------------------------------------------------------- the scores of a search


@pytest.fixture
def search(prepared: str, tmp_path: Path) -> list[Trial]:
    """The trials of `<tmp_path>/run`, best first, of which the detections alone were kept."""
    run, fingerprint = str(tmp_path / "run"), open_dataset(prepared).fingerprint
    storage.write_json(f"{run}/run.json", {"search": {"preset": "test"}, "dataset": fingerprint, "data": prepared})
    for seed, skill in ((1, 0.9), (2, 0.5)):
        ended = ended_trial(run, tmp_path / "made", config_of(seed), prepared, skill=skill)
        TrialFolder(run, ended.trial_id).prune()
    trials = [TrialFolder(run, name).read() for name in storage.list_names(f"{run}/trials")]
    best_first = ranked([trial for trial in trials if trial])
    write_leaderboard(run, Leaderboard("test", fingerprint, True, best_first))
    return list(best_first)


def test_the_scores_of_a_search_are_told_again(search: list[Trial], tmp_path: Path) -> None:
    done = run("--run", "run", "--trial", "all", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    title, _, first, second, summary, _ = done.stdout.splitlines()
    assert "synthetic data" in title
    assert first.split()[:4] == [search[0].trial_id, "yolox", f"{search[0].score:.8f}", f"{search[0].score:.8f}"]
    assert second.split()[0] == search[1].trial_id
    assert " ".join(first.split()).endswith(" 0 detections, weights not kept agrees")
    assert summary.startswith("2 of 2 agree to 1e-06; 2 by their kept detections alone")


def test_a_score_that_differs_is_exit_code_1(search: list[Trial], prepared: str, tmp_path: Path) -> None:
    better = replace(search[1], score=search[1].score + 1e-5)
    write_leaderboard(str(tmp_path / "run"), Leaderboard("test", open_dataset(prepared).fingerprint, True, (better,)))
    done = run("--run", "run", "--trial", better.trial_id, "--data", prepared, "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "-1.0e-05" in done.stdout
    assert "refused: its detections score " in done.stdout
    assert "0 of 1 agree" in done.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "neither is given of --predictions and --run"),
        (("--predictions", "a.parquet", "--run", "run"), "both are given of --predictions and --run"),
        (("--predictions", "a.parquet"), "--data is missing: give the prepared dataset"),
        (("--predictions", "a.parquet", "--data", "x", "--trial", "all"), "--trial belongs to --run; leave it out"),
        (("--run", "run", "--html", "a.html"), "--html belongs to --predictions; leave it out"),
        (("--run", "run", "--score-threshold", "0"), "--score-threshold belongs to --predictions"),
        (("--run", "nowhere"), "nowhere: holds no search (no run.json)"),
        (("--run", "run"), "run/best: no manifest.json"),
        (("--run", "run", "--trial", "0123456789"), "--trial 0123456789: no trial of {here}/run; "),
        (("--run", "run", "--trial", "all", "--data", "run"), "run: not a prepared dataset"),
    ],
)
def test_what_cannot_be_told_again_is_one_line_and_exit_code_2(
    flags: tuple[str, ...], told: str, search: list[Trial], tmp_path: Path
) -> None:
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told.format(here=tmp_path) in line
