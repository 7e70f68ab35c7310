"""Commands that vbd prints, and those of its documents: a shell takes them as they stand."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vbd import commands, storage
from vbd.commands import job_command
from vbd.config import RunOptions
from vbd.config.presets import preset_of
from vbd.data.prepared import open_dataset
from vbd.ensemble.recipe import read_ensemble, read_recipe
from vbd.errors import InputError
from vbd.pipeline import run_pipeline

ROOT = Path(__file__).parent.parent
AWKWARD = "my runs #1 50%"  # as one types without thinking of a shell
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def _words(job: str, *arguments: str) -> list[str]:
    """A command that runs this very interpreter, from a folder outside the project."""
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments]


def test_a_command_comes_out_of_a_shell_as_it_went_in() -> None:
    arguments = ("--run", f"runs/{AWKWARD}", "--name", "it's", "--set", "a=$HOME;b", "--note", "")
    assert shlex.split(job_command("report", *arguments))[2:] == list(arguments)


def test_paths_are_relative_inside_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "x y"
    (project / "jobs").mkdir(parents=True)
    (project / "jobs" / "eda.py").touch()
    monkeypatch.setattr(commands, "ROOT", project)
    monkeypatch.setattr(sys, "executable", str(project / ".venv" / "bin" / "python"))
    monkeypatch.chdir(project)
    assert job_command("eda", "--data", "a b") == ".venv/bin/python jobs/eda.py --data 'a b'"
    monkeypatch.chdir(project / "jobs")
    assert job_command("eda") == f"'{project}/.venv/bin/python' ./eda.py"
    monkeypatch.chdir("/")
    assert job_command("eda", interpreter="/usr/bin/python3") == f"usr/bin/python3 '{str(project)[1:]}/jobs/eda.py'"


def test_a_submitted_job_names_the_users_own_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert job_command("report", "--run", "s3://a/b") == ".venv/bin/python jobs/report.py --run s3://a/b"


def test_a_search_ends_with_the_commands_of_its_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("vbd.pipeline.check_pipeline", "vbd.search.tune.tuner.needs_of", "vbd.search.run.run_search"):
        monkeypatch.setattr(place, lambda *_, **__: None)
    made = SimpleNamespace(output="submission.csv")
    monkeypatch.setattr("vbd.pipeline.summary_of", lambda _: "the ensemble")
    monkeypatch.setattr("vbd.ensemble.build.build_ensemble", lambda *_, **__: made)
    monkeypatch.chdir(tmp_path)
    run_pipeline(
        preset_of("smoke"), data=f"data/{AWKWARD}", storage_root=AWKWARD, name="run", options=RunOptions(device="cpu")
    )
    reports, ensemble = capsys.readouterr().out.splitlines()[-2:]
    where = ("--run", f"{AWKWARD}/run", "--data", f"data/{AWKWARD}")
    assert shlex.split(reports) == ["reports", *_words("report", *where, "--output", "report.html")]
    assert shlex.split(ensemble) == _words("ensemble", *where, "--html", "ensemble.html")


def _broken(run: str) -> None:
    storage.write_json(storage.join(run, "ensemble.json"), {"schema": 2})
    read_recipe(run)


@pytest.mark.parametrize(
    ("action", "job", "arguments"),
    [
        (open_dataset, "prepare", ("--source", "RAW", "--output", AWKWARD)),
        (read_ensemble, "ensemble", ("--run", AWKWARD, "--data", "DATA")),
        (_broken, "ensemble", ("--run", AWKWARD, "--data", "DATA")),
    ],
)
def test_a_mistake_names_the_command_that_helps(
    action: Callable[[str], object],
    job: str,
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        action(AWKWARD)
    assert shlex.split(str(error.value).partition(", run: ")[2]) == _words(job, *arguments)


def test_so_does_a_search_without_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        run_pipeline(preset_of("study"), data=None, storage_root="runs", name="run", options=RunOptions(device="cpu"))
    told, _, command = str(error.value).partition("; to make one, run: ")
    assert told == "preset study needs --data, a prepared dataset"
    assert shlex.split(command) == _words("prepare", "--source", "RAW", "--output", "DATA")


def test_vbd_writes_no_command_by_hand() -> None:
    by_hand = re.compile(r"python jobs/|\brun jobs/")
    files = [path for path in (ROOT / "vbd").rglob("*.py") if path.name != "commands.py"]
    found = [path.name for path in files if by_hand.search(path.read_text())]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_documents_name_the_python_of_the_environment(page: Path) -> None:
    lines = page.read_text().splitlines()
    count = 0
    for number, line in enumerate(lines):
        for place in re.finditer(r"(\S*)python (jobs|benchmarks)/", line):
            count += 1
            whole = (lines[number - 1] if lines[number - 1].endswith("-- \\") else "") + line[: place.start()]
            wanted = "" if "ray job submit" in whole else ".venv/bin/"
            assert place[1].lstrip("(`") == wanted, f"{page.name}:{number + 1}: {line}"
    assert count or page.name in ("jobs.md", "security.md")
