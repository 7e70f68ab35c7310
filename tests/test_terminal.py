"""All jobs on a small terminal, as their users run them; `test_attached` has a wide one."""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.terminal import CTRL_C, ROOT, Shown, Terminal, all_in_one

_SMALL = "--families yolox --trials 2 --steps 12"
_TINY = ("image_size=64", "variant=nano", "batch_size=4", "report_every=3", "pretrained=false", "scheduler=fifo")
_TUNE = f"tune search --data data --name run {_SMALL} " + " ".join(f"--set={one}" for one in _TINY)
# In the order in which a user runs them; each goes on with what the one before it wrote.
FIRST = {
    "sample": "sample --output raw --images 40 --test-images 6 --size 96",
    "prepare": "prepare --source raw --output data --image-size 64 --folds 2",
    "eda": "eda --data data --output eda.html",
}
THEN = {
    "tune": _TUNE,
    "report": "report --run runs/run --data data --output report.html",
    "train": "train --run runs/run --data data --output folds --folds 0 --set steps=3",
    "predict": "predict --ensemble runs/run --images data --output found --coco found.json",
    "ensemble": "ensemble --run runs/run --data data --output again.csv --replicates 10",
    "evaluate": "evaluate --predictions again.csv --data data --replicates 10",
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


@dataclass(frozen=True)
class Ran:
    """What all jobs have shown on a small terminal, and what the search showed that Ctrl-C interrupted before."""

    jobs: dict[str, str]
    search: Shown
    interrupted: Shown


def start(command: Sequence[str], *, cwd: Path, columns: int = 80, rows: int = 24) -> Terminal:
    """A program on a terminal of its own; its jobs start a Ray of their own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return Terminal(command, cwd=cwd, env=environment, columns=columns, rows=rows)


def job(command: str) -> list[str]:
    """The command by which a user starts a job."""
    name, *flags = shlex.split(command)
    return [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("desk")
    with start(all_in_one(list(FIRST.values())), cwd=folder) as terminal:
        first = terminal.finish()
    with start(job(_TUNE), cwd=folder) as terminal:
        terminal.wait_for(" 3/12 ", timeout=300)
        terminal.type(CTRL_C)
        interrupted = terminal.finish()
    with start(all_in_one(list(THEN.values())), cwd=folder) as terminal:
        then = terminal.finish(timeout=600)
    return Ran(_by_job(first, FIRST) | _by_job(then, THEN), then, interrupted)


def _by_job(shown: Shown, commands: dict[str, str]) -> dict[str, str]:
    """What each job has written up to its exit code, which is 0."""
    found, rest = {}, shown.plain
    for name, command in commands.items():
        found[name], ended, rest = rest.partition(f"exit 0: {command}\n")
        assert ended, f"{name} did not end well:\n{shown.plain}"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FIRST, *THEN])
def test_a_job_shows_its_progress_and_ends_well(ran: Ran, name: str) -> None:
    written = [line.strip() for line in ran.jobs[name].splitlines() if line.strip()]
    assert PROGRESS[name] in " ".join(written)
    last = json.loads(written[-1])
    assert (last["job"], last["exit"]) == (name, 0)
    assert not [line for line in written if "Traceback" in line or "core_worker" in line]


@pytest.mark.slow
def test_the_live_table_of_a_search_leaves_nothing_behind(ran: Ran) -> None:
    assert re.search(r"running +step +loss +score +images/s", ran.jobs["tune"])
    # It is erased at the end; other jobs of the same terminal print images/s too.
    assert not any(re.search(r"running +step +loss +score +images/s", line) for line in ran.search.lines)
    assert "".join(ran.search.lines).replace(" ", "").count("|done;bestsofar") == 2


@pytest.mark.slow
def test_what_ctrl_c_interrupted_is_resumed_by_the_same_command(ran: Ran) -> None:
    shown = ran.interrupted
    assert shown.exit_code == 130
    assert "Traceback" not in shown.plain
    assert json.loads(shown.plain.splitlines()[-1])["exit"] == 130
    assert "going on with the search" in ran.jobs["tune"]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_wrong_flag_is_one_plain_line(tmp_path: Path, columns: int, rows: int) -> None:
    with start(job(f"{FIRST['prepare']} --nonsense 3"), cwd=tmp_path, columns=columns, rows=rows) as terminal:
        shown = terminal.finish()
    assert shown.exit_code == 2
    assert shown.raw.splitlines()[0].startswith("error: Unrecognized options: --nonsense, 3; For full helptext, run")
