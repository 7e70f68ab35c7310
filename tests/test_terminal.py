"""All jobs on a real terminal, as their users run them: what they show, how they end, and what Ctrl-C does to them."""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.nodes import ROOT, Nodes
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


@dataclass
class Desk:
    """A folder, a terminal's size, and perhaps a Ray that was started elsewhere."""

    folder: Path
    columns: int
    rows: int
    environment: dict[str, str]
    shown: dict[str, Shown] = field(default_factory=dict)

    def start(self, job: str, *flags: str) -> Terminal:
        """A job on a terminal of its own."""
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags]
        return Terminal(command, cwd=self.folder, env=self.environment, columns=self.columns, rows=self.rows)

    def run(self, job: str, *flags: str) -> Shown:
        """What a job has shown when it has ended."""
        with self.start(job, *flags) as terminal:
            return terminal.finish()


@pytest.fixture(scope="module", params=["80x24, a Ray of its own", "200x50, a Ray that was started elsewhere"])
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Every job has run, with paths relative to the folder; the small terminal has interrupted its search once."""
    folder = tmp_path_factory.mktemp("desk")
    columns, rows = map(int, request.param.partition(",")[0].split("x"))
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if columns == 80:
        yield _all_jobs(Desk(folder, columns, rows, own), interrupt=True)
        return
    with Nodes(cpus=2, object_store_memory=200_000_000) as nodes:
        yield _all_jobs(Desk(folder, columns, rows, nodes.environment), interrupt=False)


def _all_jobs(desk: Desk, *, interrupt: bool) -> Desk:
    for job, flags in JOBS.items():
        if job == "tune" and interrupt:
            with desk.start(job, *flags) as terminal:
                terminal.wait_for("3/12")
                terminal.type(CTRL_C)
                desk.shown["interrupted tune"] = terminal.finish()
        desk.shown[job] = desk.run(job, *flags)
        assert desk.shown[job].exit_code == 0, f"{job}:\n{desk.shown[job].text}"
    return desk


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_job_shows_its_progress_and_ends_well(desk: Desk, job: str) -> None:
    shown = desk.shown[job]
    written = [line.strip() for line in _without_commands(shown.raw).splitlines() if line.strip()]
    assert PROGRESS[job] in " ".join(written)
    last = json.loads(written[-1])
    assert (last["job"], last["exit"]) == (job, 0)
    assert "Traceback" not in shown.raw
    assert "core_worker" not in shown.raw  # Ray's own lines that look like failures


@pytest.mark.slow
def test_the_live_table_of_a_search_leaves_nothing_behind(desk: Desk) -> None:
    shown = desk.shown["tune"]
    assert re.search(r"running +step +loss +score +images/s", _without_commands(shown.raw))
    assert not any("images/s" in line for line in shown.lines)  # it is erased at the end
    assert sum("| done; best so far" in line for line in shown.lines) == 2


@pytest.mark.slow
def test_what_was_interrupted_by_ctrl_c_is_resumed_by_the_same_command(desk: Desk) -> None:
    shown = desk.shown.get("interrupted tune")
    if shown is None:
        pytest.skip("only the small terminal interrupts its search")
    assert shown.exit_code == 130
    assert "Traceback" not in shown.text
    assert "interrupted; " in shown.text
    assert "going on with the search" in desk.shown["tune"].text.replace("\n", "")


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_wrong_flag_is_one_plain_line(tmp_path: Path, columns: int, rows: int) -> None:
    shown = Desk(tmp_path, columns, rows, dict(os.environ)).run("prepare", "--nonsense", "3", *JOBS["prepare"])
    assert shown.raw.splitlines()[0].startswith("error: Unrecognized options: --nonsense, 3; For full helptext, run")
    assert shown.exit_code == 2


def _without_commands(raw: str) -> str:
    """What was written, without the commands to the terminal."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", raw)
