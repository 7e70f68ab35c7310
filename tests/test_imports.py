"""The import rule of ARCHITECTURE.md, and what may load slowly."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "vbd").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("[a-z]*.py"))

# Low to high; a module may import from its own level and from lower ones.
LEVELS = (
    (
        *("vbd", "errors", "labels", "boxes", "config", "presets", "storage", "records", "rejects", "progress"),
        *("fusing", "suppression", "drawing", "outputs", "credentials", "cluster", "placement", "versions"),
        *("deletion", "ownership", "connection", "commands", "interpreter", "ray_noise", "caches"),
    ),
    (
        *("augment", "evaluation", "submission"),
        *("data.sources", "data.images", "data.readers", "data.folds", "data.duplicates", "data.coco"),
        *("data.phantom", "data.prepared"),
    ),
    ("data.labelling", "data.relabelling"),
    ("data.prepare", "data.materialise", "data.dataset"),
    ("models",),
    ("training",),
    ("search", "ensemble"),
    ("reports",),
    ("pipeline", "cli"),
)
STRANGERS = {("search", "ensemble"), ("ensemble", "search")}
MAY_IMPORT = {
    "ray": (
        "cluster",
        "placement",
        "ray_noise",
        "data.prepare",
        "data.dataset",
        "training.run",
        "search",
        "ensemble.predict",
        "connection",
    ),
    "torch": ("models", "training", "data.dataset", "ensemble.predict"),
    "yolox": ("models.yolox",),
    "effdet": ("models.efficientdet",),
    "ensemble_boxes": (),
}


def _name(path: Path) -> str:
    """`vbd/data/prepare.py` -> `data.prepare`; the package itself -> `vbd`."""
    parts = path.relative_to(ROOT / "vbd").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "vbd"


def _imports(path: Path) -> set[str]:
    """Full names of all modules a file imports, wherever in it, but not those for the type checker alone."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        pending += ast.iter_child_nodes(node)
    return found


def _is_within(name: str, part: str) -> bool:
    return name == part or name.startswith((f"{part}.", f"{part}_"))


def _level(name: str) -> int:
    levels = [i for i, parts in enumerate(LEVELS) if any(_is_within(name, part) for part in parts)]
    return max(levels, default=0)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_imports_only_from_its_own_level_and_lower(path: Path) -> None:
    name = _name(path)
    for module in _imports(path):
        if not module.startswith("vbd."):
            continue
        other = module.removeprefix("vbd.")
        assert _level(other) <= _level(name), f"{name} imports {other}, which stands above it"
        assert (name.split(".")[0], other.split(".")[0]) not in STRANGERS, f"{name} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_vendor_stays_where_it_belongs(path: Path) -> None:
    name = _name(path)
    for module in _imports(path):
        vendor = module.split(".")[0]
        if vendor in MAY_IMPORT:
            assert any(_is_within(name, part) for part in MAY_IMPORT[vendor]), f"{name} imports {module}"


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
