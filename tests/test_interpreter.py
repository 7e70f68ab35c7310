"""What a job says when its Python lacks vbd's packages, or is a version that vbd does not support."""

import ast
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vbd import interpreter

ROOT = Path(__file__).parent.parent
JOBS = sorted((ROOT / "jobs").glob("[a-z]*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jobs and what they import first, in a folder whose name needs quotes, with an environment that is installed."""
    folder = tmp_path_factory.mktemp("project") / "my project #1"
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    for name in ("__init__.py", "commands.py", "interpreter.py"):
        (folder / "vbd").mkdir(exist_ok=True)
        shutil.copy(ROOT / "vbd" / name, folder / "vbd" / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "installed").touch()
    return folder


def _bare(*command: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command of this Python without any installed package."""
    return subprocess.run(
        [sys.executable, "-S", *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_outside_the_environment_names_the_python_to_use(job: Path, project: Path) -> None:
    done = _bare(f"jobs/{job.name}", "--run", "it's", cwd=project)
    problem = f"vbd's packages are not installed for {sys.executable} (missing: vbd, PIL, cv2 and 24 more)"
    message = f"{problem}; use: .venv/bin/python jobs/{job.name} --run 'it'\"'\"'s'"
    assert done.stderr == f"error: {message}\n"
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"exit": 2, "job": job.stem, "reason": message, "seconds": 0.0}


def test_from_another_folder_too(project: Path, tmp_path: Path) -> None:
    done = _bare(str(project / "jobs" / "eda.py"), "--help", cwd=tmp_path)
    assert done.returncode == 2
    command = shlex.split(done.stderr.partition("; use: ")[2])
    assert command == [f"{project}/.venv/bin/python", f"{project}/jobs/eda.py", "--help"]


def test_vbd_alone_is_not_enough(project: Path, tmp_path: Path) -> None:
    done = _bare(str(project / "jobs" / "tune.py"), cwd=tmp_path, PYTHONPATH=str(project))
    assert "(missing: PIL, cv2, effdet and 23 more); use: " in done.stderr


def _said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["jobs/tune.py", "smoke"])
    with pytest.raises(SystemExit) as stop:
        interpreter.check()
    assert stop.value.code == 2
    return capsys.readouterr().err


def _without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None if name in missing else object())


@pytest.mark.parametrize(
    ("is_installed", "prefix", "folder", "advice"),
    [
        (True, "/usr", ".", "; use: .venv/bin/python {script}"),
        (False, "/usr", ".", "; run once: make .venv/installed; then use: .venv/bin/python {script}"),
        (False, "/usr", "..", "; run once: make -C '{root}' .venv/installed; then use: 'a b'/.venv"),
        (
            True,
            "{root}/.venv",
            ".",
            "; run once: make --always-make .venv/installed; then use: .venv/bin/python {script}",
        ),
    ],
    ids=["installed", "not yet", "from elsewhere", "in part"],
)
def test_the_advice_fits_what_is_installed(
    is_installed: bool,
    prefix: str,
    folder: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "a b"
    (root / ".venv").mkdir(parents=True)
    if is_installed:
        (root / ".venv" / "installed").touch()
    _without(monkeypatch, "ray", "tyro")
    monkeypatch.setattr(interpreter, "ROOT", root)
    monkeypatch.setattr(sys, "prefix", prefix.format(root=root))
    monkeypatch.chdir(root / folder)
    said = _said(monkeypatch, capsys)
    assert said.startswith(f"error: vbd's packages are not installed for {sys.executable} (missing: ray, tyro); ")
    advice = advice.replace("'a b'/.venv", "'a b/.venv/bin/python' {script}")
    assert advice.format(root=root, script=f"{ROOT}/jobs/tune.py smoke") in said


def test_a_submitted_job_needs_its_nodes_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    _without(monkeypatch, "tyro")
    assert "(missing: tyro); install the packages on every node with deploy/install.sh" in _said(monkeypatch, capsys)


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 15, 0)])
def test_another_version_of_python_is_named(
    version: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _without(monkeypatch)
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(interpreter, "ROOT", tmp_path)
    said = _said(monkeypatch, capsys)
    problem = f"error: vbd needs Python 3.11 to 3.14, and {sys.executable} is 3.{version[1]}"
    assert said.startswith(f"{problem}; run once: make PYTHON=python3.12 -C {tmp_path} .venv/installed; then use: ")


def test_a_module_of_ours_that_is_missing_is_a_fault_of_ours(project: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(project, tmp_path / "broken")
    (broken / "vbd" / "cli.py").write_text("import vbd.nothing\n")
    done = subprocess.run(
        [sys.executable, "jobs/eda.py"],
        cwd=broken,
        env={"PYTHONPATH": str(broken)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'vbd.nothing'"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_looks_at_its_interpreter_before_anything_else(job: Path) -> None:
    first = next(node for node in ast.parse(job.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom))
    assert ast.unparse(first) == "import _environment"


def test_every_dependency_is_looked_for() -> None:
    modules: dict[str, list[str]] = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(_canonical(package), []).append(module)
    names = [_canonical(re.match(r"[\w.-]+", dependency)[0]) for dependency in PROJECT["dependencies"]]  # type: ignore[index]
    assert [name for name in names if not set(modules[name]) & set(interpreter.MODULES)] == []
    assert len(names) == len(interpreter.MODULES)


def _canonical(package: str) -> str:
    return re.sub(r"[._-]+", "-", package).lower()


def test_versions_and_the_target_of_make_are_those_of_the_project() -> None:
    (major, least), (_, most) = interpreter.PYTHONS
    assert PROJECT["requires-python"] == f">={major}.{least},<{major}.{most + 1}"
    assert "STAMP := .venv/installed" in (ROOT / "Makefile").read_text()
