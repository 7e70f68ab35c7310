"""deploy/install.sh as a node runs it, with a pip that only tells what it was asked for."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.files import ROOT, pretend

PIP = """#!/usr/bin/env bash
{ echo "pip $*"; for word in "$@"; do case $word in */tmp.*) sed 's/^/  /' "$word";; esac; done; } >> "$HOME/asked"
exit "${PIP_FAILS:-0}"
"""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A home, which has the files that cluster.yaml puts on a node in `vbd`, and a pip in `bin`."""
    folder = tmp_path / "vbd"
    (folder / "deploy").mkdir(parents=True)
    for name in ("constraints.txt", "pyproject.toml", "deploy/install.sh", "deploy/check_python.py"):
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for name, text in (("pip", PIP), ("sudo", '#!/usr/bin/env bash\necho "sudo $*" >> "$HOME/asked"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def _install(node: Path, **environment: str) -> tuple[int, list[str]]:
    """Exit code, and the commands that pip and sudo were started with."""
    return _run(node, **environment)[:2]


def _run(node: Path, **environment: str) -> tuple[int, list[str], str]:
    """The same, and what was printed on stderr."""
    (node / "asked").write_text("")
    done = subprocess.run(
        ["bash", str(node / "vbd/deploy/install.sh"), str(node / "vbd")],
        env=os.environ | {"HOME": str(node), "PATH": f"{node}/bin:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (node / "asked").read_text().splitlines(), done.stderr


def test_a_node_installs_what_the_project_depends_on_in_the_tested_versions(node: Path) -> None:
    code, asked = _install(node)
    assert code == 0
    commands = [line for line in asked if line.startswith("pip ")]
    assert len(commands) == 2
    assert all(f"--constraint {node}/vbd/constraints.txt" in command for command in commands)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [line.strip() for line in asked if line.startswith("  ")] == wanted
    # The build that needs no graphics libraries is laid over the other, as the Makefile does.
    assert commands[1].split()[1:5] == ["install", "--quiet", "--force-reinstall", "--no-deps"]
    assert commands[1].endswith(" opencv-python-headless")


def test_a_second_start_installs_nothing(node: Path) -> None:
    _install(node)
    assert _install(node) == (0, [])


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_other_versions_are_installed(node: Path, name: str) -> None:
    _install(node)
    with open(node / "vbd" / name, "a") as stream:
        stream.write("# another\n")
    code, asked = _install(node)
    assert code == 0
    assert len([line for line in asked if line.startswith("pip ")]) == 2
    assert _install(node) == (0, [])


def test_what_failed_is_tried_again(node: Path) -> None:
    code, _ = _install(node, PIP_FAILS="1")
    assert code != 0
    code, asked = _install(node)
    assert code == 0
    assert asked


def test_a_token_of_another_user_is_handed_to_that_of_the_container(node: Path) -> None:
    token = node / "vbd" / "auth_token"
    token.write_text("x")
    _install(node)
    assert _install(node) == (0, [])
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(token, 12345, 12345)
    assert _install(node) == (0, [f"sudo chown 0 {token}"])


def test_an_image_with_another_python_is_refused_in_one_line(node: Path) -> None:
    wrapper = f'#!/usr/bin/env bash\nexec {sys.executable} {pretend(node, (3, 10))} "$@"\n'
    (node / "bin" / "python").unlink()
    (node / "bin" / "python").write_text(wrapper)
    (node / "bin" / "python").chmod(0o755)
    code, asked, errors = _run(node)
    assert (code, asked) == (2, [])
    assert errors == "error: python is Python 3.10, and vbd needs Python 3.11 to 3.14; choose another image\n"


IN_THE_IMAGE = ("constraints.txt", "pyproject.toml", "deploy/install.sh", "deploy/check_python.py", "vbd", "jobs")


@pytest.mark.parametrize("name", IN_THE_IMAGE)
def test_the_image_is_built_of_files_that_are_there(name: str) -> None:
    copied = [
        line.split()[2:-1] for line in (ROOT / "deploy/Dockerfile").read_text().splitlines() if line.startswith("COPY")
    ]
    assert (ROOT / name).exists()
    assert name in [each for line in copied for each in line]
