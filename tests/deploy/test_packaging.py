"""What `ray job submit --working-dir .` sends, packed by Ray itself."""

import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from tests.deploy.files import ROOT

FOLDERS = ("vbd", "jobs", "deploy")
FILES = ("cluster.yaml", "constraints.txt", "pyproject.toml")
STRANGERS = (
    *(
        "vinbigdata/train.csv",
        "vinbigdata/train/a.dicom",
        "vinbigdata/vbd/a.py",
        "my runs/smoke/run.json",
        "runs/x/model.pt",
    ),
    *(
        "big.bin",
        "notes",
        ".env",
        ".python-version",
        ".venv/bin/python",
        ".venv/lib/a.py",
        ".git/config",
        "..odd",
        "key.pem",
    ),
    *("tests/a.py", "docs/a.md", "README.md", "vbd.egg-info/PKG-INFO", "data/phantom/train.csv", "vbd2/a.py"),
    *(
        "vbd/key.pem",
        "vbd/data/.env",
        "vbd/models/weights.pt",
        "vbd/__pycache__/a.cpython-313.pyc",
        "vbd/.cache/a.json",
    ),
    *("vbd/data/__pycache__/kernel.nbi", "jobs/aws.json", "jobs/.env", "deploy/key.pem", "deploy/kuberay/secret.txt"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout in which its user keeps data, results and keys."""
    folder = tmp_path / "checkout"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*FILES, ".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def _packed(folder: Path, *, with_gitignore: bool) -> set[str]:
    package = folder.parent / f"package-{with_gitignore}.zip"
    create_package(str(folder), package, include_gitignore=with_gitignore)
    with zipfile.ZipFile(package) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("with_gitignore", [True, False])
def test_code_and_settings_travel_and_nothing_else_in_the_folder(tree: Path, with_gitignore: bool) -> None:
    ours = {str(path.relative_to(tree)) for name in FOLDERS for path in (tree / name).rglob("*") if path.is_file()}
    assert {
        "vbd/data/phantom/write.py",
        "vbd/py.typed",
        "jobs/tune.py",
        "deploy/aws/head.json",
        "deploy/install.sh",
    } < ours
    for name in STRANGERS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    assert _packed(tree, with_gitignore=with_gitignore) == ours | set(FILES)


def test_a_file_of_the_users_own_travels_when_a_line_names_it(tree: Path) -> None:
    (tree / "recipe.json").write_text("{}")
    before = _packed(tree, with_gitignore=True)
    with open(tree / ".rayignore", "a") as lines:
        lines.write("!/recipe.json\n")
    assert _packed(tree, with_gitignore=False) == before | {"recipe.json"}
