"""A Python that vbd does not support ends `make` in one line, before anything is installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.check_python import complaint
from tests.deploy.files import ROOT, pretend

PROJECT = (ROOT / "pyproject.toml").read_text()
CHOOSE = "to use another Python: make PYTHON=python3.12.  Stop.\n"


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 14)])
def test_a_supported_version_is_accepted(version: tuple[int, int]) -> None:
    assert complaint("python3", version, [], PROJECT) == ""


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 10), (3, 15), (4, 0)])
def test_another_version_is_named(version: tuple[int, int]) -> None:
    expected = f"python3 is Python {version[0]}.{version[1]}, and vbd needs Python 3.11 to 3.14"
    assert complaint("python3", version, ["venv"], PROJECT) == expected


def test_a_python_without_venv_is_given_its_package() -> None:
    expected = "python3 has no module ensurepip; install it (Debian, Ubuntu: apt-get install python3.13-venv)"
    assert complaint("python3", (3, 13), ["ensurepip"], PROJECT) == expected


def test_the_readme_names_the_same_versions() -> None:
    assert "Python 3.11 to 3.14" in (ROOT / "README.md").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make .venv/installed` reads, and a folder `bin` in front of PATH."""
    (tmp_path / "deploy").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "deploy/check_python.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    return tmp_path


def _make(checkout: Path, *arguments: str) -> tuple[int, str]:
    """Exit code, and what is printed; `--dry-run`, or a Python that is accepted would install everything."""
    done = subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=checkout,
        env={"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, re.sub(r"^Makefile:\d+: ", "", done.stdout)


def _python(checkout: Path, script: str) -> None:
    (checkout / "bin" / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (checkout / "bin" / "python3").chmod(0o755)


@pytest.mark.parametrize("target", ["tune", "test", "audit"])
def test_make_refuses_another_version_in_one_line(checkout: Path, target: str) -> None:
    _python(checkout, f'exec {sys.executable} {pretend(checkout, (3, 10))} "$@"')
    code, output = _make(checkout, target)
    assert (code, output) == (2, f"*** python3 is Python 3.10, and vbd needs Python 3.11 to 3.14; {CHOOSE}")


def test_make_refuses_a_python_that_is_not_there_in_one_line(checkout: Path) -> None:
    code, output = _make(checkout, "tune", "PYTHON=python3.99")
    hint = "(Debian, Ubuntu: apt-get install python3 python3-venv)"
    assert (code, output) == (2, f"*** python3.99 is not installed {hint}; {CHOOSE}")


def test_make_refuses_a_python_that_does_not_run_in_one_line(checkout: Path) -> None:
    _python(checkout, "echo 'SyntaxError: invalid syntax' >&2; exit 1")
    assert _make(checkout, "tune") == (2, f"*** python3 does not run, or is not Python 3; {CHOOSE}")


def test_make_installs_with_the_python_that_is_named(checkout: Path) -> None:
    code, output = _make(checkout, "tune", f"PYTHON={sys.executable}")
    assert code == 0
    assert output.splitlines()[0] == f"{sys.executable} -m venv .venv"
