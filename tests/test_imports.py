"""The import rule of `tools/house.py`, and what may load slowly."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools import house

ROOT = Path(__file__).parent.parent
JOBS = sorted((ROOT / "jobs").glob("[a-z]*.py"))


def test_a_room_imports_only_from_rooms_below_it() -> None:
    files = house.modules()
    between = house.between_rooms(files)
    assert sorted(between) == sorted(house.ROOMS)
    place = {room: number for number, room in enumerate(house.ROOMS)}
    up = {(room, other) for room, others in between.items() for other in others if place[other] > place[room]}
    assert up == set()
    for room, others in between.items():
        for one, stranger in (house.STRANGERS, house.STRANGERS[::-1]):
            if room.split(".")[0] == one:
                assert stranger not in {other.split(".")[0] for other in others}, room


def test_no_files_import_each_other_in_a_circle() -> None:
    assert house.circles(house.arrows(house.modules())) == []
    assert house.circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"f"}, "f": {"e"}}) == [
        ["a", "b", "c"],
        ["e", "f"],
    ]


def test_what_the_type_checker_alone_imports_counts(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vbd import errors\ndef f():\n    import vbd.labels\n"
    (tmp_path / "a.py").write_text(text)
    assert sorted(house.imports(tmp_path / "a.py")) == ["typing.TYPE_CHECKING", "vbd.errors", "vbd.labels"]


def test_a_vendor_stays_where_it_belongs() -> None:
    files = house.modules()
    found = {
        (vendor, house.room_of(name, files))
        for name, path in files.items()
        for vendor in {module.split(".")[0] for module in house.imports(path)} & set(house.VENDORS)
    }
    assert found == {(vendor, room) for vendor, rooms in house.VENDORS.items() for room in rooms}


def test_the_picture_in_the_architecture_is_that_of_today() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert house.with_picture(text) == text, "run: .venv/bin/python tools/house.py --write"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_is_short(path: Path) -> None:
    without_help = ast.parse(path.read_text())
    for node in ast.walk(without_help):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    lines = ast.unparse(without_help).splitlines()
    assert len(lines) <= 40, f"{path.name} has {len(lines)} lines: what it does belongs into vbd"


@pytest.mark.parametrize("path", [None, *JOBS], ids=lambda path: path.name if path else "vbd.config")
def test_help_loads_neither_torch_nor_ray(path: Path | None) -> None:
    body = (
        "import vbd, vbd.config"
        if path is None
        else f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT / 'jobs')!r})\nsys.argv = ['job', '--help']\ntry:\n    "
        + body
        + "\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'ray', 'pandas', 'plotly', 'albumentations', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path is None or "usage" in done.stdout
