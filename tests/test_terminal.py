"""All jobs on a small terminal, as their users run them; `test_attached` has a wide one."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.nodes import ROOT
from tests.terminal import CTRL_C, Shown, Terminal

_SMALL = ("--families", "yolox", "--trials", "2", "--steps", "12")
_TINY = ("image_size=64", "variant=nano", "batch_size=4", "report_every=3", "pretrained=false", "scheduler=fifo")
# In the order in which a user runs them; each goes on with what the one before it wrote.
JOBS = {
    "sample": ("--output", "raw", "--images", "40", "--test-images", "6", "--size", "96"),
    "prepare": ("--source", "raw", "--output", "data", "--image-size", "64", "--folds", "2"),
    "eda": ("--data", "data", "--output", "eda.html"),
    "tune": ("search", "--data", "data", "--name", "run", *_SMALL, *(f"--set={one}" for one in _TINY)),
    "report": ("--run", "runs/run", "--data", "data", "--output", "report.html"),
    "train": ("--run", "runs/run", "--data", "data", "--output", "folds", "--folds", "0", "--set", "steps=3"),
    "predict": ("--ensemble", "runs/run", "--images", "data", "--output", "found", "--coco", "found.json"),
    "ensemble": ("--run", "runs/run", "--data", "data", "--output", "again.csv", "--replicates", "10"),
    "evaluate": ("--predictions", "again.csv", "--data", "data", "--replicates", "10"),
}
# What a user sees while each works, wherever a terminal breaks its lines.
PROGRESS = {
    "sample": "40 train",
    "prepare": "46/46 images",
    "eda": "eda.html",
    "tune": "2/2 trials",
    "report": "report.html",
    "train": "step 3/3",
    "predict": "6/6",
    "ensemble": "predicting 6 test images",
    "evaluate": "No finding",
}


def start(job: str, *flags: str, cwd: Path, columns: int = 80, rows: int = 24) -> Terminal:
    """A job on a terminal of its own, with a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags]
    return Terminal(command, cwd=cwd, env=environment, columns=columns, rows=rows)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """What each job has shown on a small terminal; the search was interrupted once before."""
    folder = tmp_path_factory.mktemp("desk")
    shown = {}
    for job, flags in JOBS.items():
        if job == "tune":
            with start(job, *flags, cwd=folder) as terminal:
                terminal.wait_for("3/12", timeout=300)
                terminal.type(CTRL_C)
                shown["interrupted"] = terminal.finish()
        with start(job, *flags, cwd=folder) as terminal:
            shown[job] = terminal.finish()
        assert shown[job].exit_code == 0, f"{job}:\n{shown[job].plain}"
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_job_shows_its_progress_and_ends_well(ran: dict[str, Shown], job: str) -> None:
    written = [line.strip() for line in ran[job].plain.splitlines() if line.strip()]
    assert PROGRESS[job] in " ".join(written)
    last = json.loads(written[-1])
    assert (last["job"], last["exit"]) == (job, 0)
    assert not [line for line in written if "Traceback" in line or "core_worker" in line]


@pytest.mark.slow
def test_the_live_table_of_a_search_leaves_nothing_behind(ran: dict[str, Shown]) -> None:
    shown = ran["tune"]
    assert re.search(r"running +step +loss +score +images/s", shown.plain)
    assert not any("images/s" in line for line in shown.lines)  # it is erased at the end
    assert "".join(shown.lines).replace(" ", "").count("|done;bestsofar") == 2


@pytest.mark.slow
def test_what_ctrl_c_interrupted_is_resumed_by_the_same_command(ran: dict[str, Shown]) -> None:
    shown = ran["interrupted"]
    assert shown.exit_code == 130
    assert "Traceback" not in shown.plain
    assert json.loads(shown.plain.splitlines()[-1])["exit"] == 130
    assert "going on with the search" in ran["tune"].plain


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_wrong_flag_is_one_plain_line(tmp_path: Path, columns: int, rows: int) -> None:
    with start("prepare", "--nonsense", "3", *JOBS["prepare"], cwd=tmp_path, columns=columns, rows=rows) as terminal:
        shown = terminal.finish()
    assert shown.exit_code == 2
    assert shown.raw.splitlines()[0].startswith("error: Unrecognized options: --nonsense, 3; For full helptext, run")
