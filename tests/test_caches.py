"""Where compiled code and copies of datasets are kept when neither home nor source folder can be written to."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
from numba.core import caching

from vbd import caches
from vbd.caches import compiled, private_folder, writable_folder

ROOT = Path(__file__).parent.parent


def _ratio(a: float, b: float) -> float:
    return a / b


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_locator(own_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """numba finds no folder to write to, unless it is given one."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return own_tmp


def test_a_private_folder_is_the_same_each_time_and_closed_to_others(own_tmp: Path) -> None:
    folder = private_folder("numba")
    assert folder == private_folder("numba") == own_tmp / f"vbd-{os.geteuid()}" / "numba"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    assert private_folder("datasets") == folder.parent / "datasets"


def _open_to_others(folder: Path) -> None:
    folder.mkdir(mode=0o755)


def _a_link(folder: Path) -> None:
    (folder.parent / "theirs").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "theirs")


def _a_file(folder: Path) -> None:
    folder.touch(mode=0o700)


def _anothers(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize("make", [_open_to_others, _a_link, _a_file, _anothers])
@pytest.mark.parametrize("below", ["", "numba"])
def test_a_folder_that_others_can_write_to_is_not_used(own_tmp: Path, make, below: str) -> None:
    place = own_tmp / f"vbd-{os.geteuid()}"
    if below:
        place.mkdir(mode=0o700)
    make(place / below)
    assert private_folder("numba") is None


def test_a_folder_is_writable_if_it_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert writable_folder("~/.cache/vbd") == tmp_path / ".cache" / "vbd"
    assert (tmp_path / ".cache" / "vbd").is_dir()
    monkeypatch.setenv("HOME", "/dev/null")
    assert writable_folder("~/.cache/vbd") is None


def test_code_is_kept_in_the_private_folder_when_numba_has_none(no_locator: Path) -> None:
    function = compiled(_ratio)
    assert function(1.0, 4.0) == 0.25
    assert Path(function.stats.cache_path).parent == private_folder("numba")
    assert [path.suffix for path in Path(function.stats.cache_path).iterdir() if path.suffix == ".nbi"] == [".nbi"]


def test_code_is_kept_nowhere_when_no_folder_is_private(no_locator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "private_folder", lambda name: None)
    function = compiled(_ratio, error_model="python")
    assert function(1.0, 4.0) == 0.25
    assert function.stats.cache_path is None
    with pytest.raises(ZeroDivisionError):
        function(1.0, 0.0)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A copy of vbd that cannot be written to, in a folder whose only writable part is `tmp`."""
    folder = Path(tempfile.mkdtemp(prefix="vbd-read-only-", dir="/tmp"))
    (folder / "tmp").mkdir()
    shutil.copytree(ROOT / "vbd", folder / "source" / "vbd", ignore=shutil.ignore_patterns("__pycache__"))
    kept = [folder, folder / "source", *(path for path in (folder / "source").rglob("*") if path.is_dir())]
    for path in kept:
        path.chmod(0o555)
    yield folder
    for path in kept:
        path.chmod(0o755)
    shutil.rmtree(folder)


FUSION = """
import vbd
from vbd.fusion.wbf import weighted_box_fusion
fused = weighted_box_fusion([[0, 0, 10, 10], [0, 0, 10, 12]], [0.6, 0.2], [3, 3], [0, 1], weights=[1, 1])
print(vbd.__file__, fused.boxes.tolist(), fused.scores.tolist())
"""


def test_boxes_are_fused_where_neither_home_nor_source_folder_can_be_written_to(read_only: Path) -> None:
    # File modes bind root only when it gives up the capability to override them.
    bound = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    done = subprocess.run(
        [*bound, sys.executable, "-c", FUSION],
        cwd="/",
        env={"HOME": str(read_only), "TMPDIR": str(read_only / "tmp"), "PYTHONPATH": str(read_only / "source")}
        | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == f"{read_only}/source/vbd/__init__.py [[0.0, 0.0, 10.0, 10.5]] [0.4]\n"
    (kept,) = (read_only / "tmp").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700
    assert list(kept.glob("numba/fusion_*/kernels.*.nbi"))
