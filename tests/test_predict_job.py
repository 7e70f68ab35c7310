"""jobs/predict.py as its user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ensemble.checkpoints import write_random
from tests.mistakes import mistake_of
from tests.owners import working_in
from vbd import storage
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.predict.request import name_checkpoints
from vbd.records import detections_from_table
from vbd.storage.ownership import OWNER
from vbd.training.members import Member, write_members

ROOT = Path(__file__).parent.parent
JOB = ROOT / "jobs" / "predict.py"


@pytest.fixture(scope="module")
def checkpoint(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_random(tmp_path_factory.mktemp("c") / "c", prepared, "efficientdet", image_size=128, batch_size=4)


@pytest.fixture
def films(phantom: Path, tmp_path: Path) -> Path:
    """As an archive exports them: folders, files without a suffix, and one that is broken."""
    folder = tmp_path / "films"
    sources = sorted((phantom / "test").iterdir())
    for i, source in enumerate(sources):
        (folder / f"patient{i % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / f"patient{i % 3}" / (f"1.2.{i}" if i % 2 else source.name))
    (folder / "DICOMDIR").write_bytes(b"")
    (folder / "broken.dcm").write_bytes(sources[0].read_bytes()[:2000])
    return folder


def _job(*flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(JOB), *flags], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )


def _environment() -> dict[str, str]:
    """A cluster of the job's own, with two cores."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}',
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--checkpoint and --run: give one of them"),
        (["--checkpoint", "{checkpoint}", "--run", "x"], "--checkpoint and --run: give one of them"),
        (["--checkpoint", "/nowhere"], "/nowhere: not a checkpoint"),
        (["--checkpoint", "{checkpoint}", "--checkpoint", "{checkpoint}"], "given twice"),
        (["--checkpoint", "{broken}"], "model.pt: truncated"),
        (["--run", "/nowhere"], "/nowhere: no manifest.json"),
        (["--ensemble", "/nowhere"], "/nowhere: no ensemble.json; to make the ensemble, run: "),
        (
            ["--ensemble", "/nowhere", "--run", "x"],
            "--ensemble has members of its own; leave --checkpoint and --run out",
        ),
        (["--checkpoint", "{checkpoint}", "--workers", "0"], "--workers 0: want 1 to 1024"),
        (["--checkpoint", "{checkpoint}", "--coco", "/nowhere/x"], "--coco /nowhere/x: want a file that ends in .json"),
        (["--checkpoint", "{checkpoint}", "--images", "{empty}"], "empty: no images here"),
    ],
)
def test_a_mistake_is_one_line_before_a_cluster_is_busy(
    flags: list[str],
    told: str,
    checkpoint: str,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.pt").write_bytes(Path(checkpoint, "model.pt").read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    places = {"checkpoint": checkpoint, "broken": tmp_path / "broken", "empty": tmp_path / "empty"}
    given = [flag.format(**places) for flag in flags]
    images = [] if "--images" in given else ["--images", str(phantom / "test")]
    assert told in mistake_of("predict", monkeypatch, capsys, *images, "--output", str(tmp_path / "out"), *given)
    assert not (tmp_path / "out").exists()


def test_predictions_in_the_making_are_left_to_who_makes_them(
    checkpoint: str, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--checkpoint", checkpoint, "--images", str(phantom / "test"), "--output", str(tmp_path / "out"))
    with working_in(str(tmp_path / "out")) as told:
        assert mistake_of("predict", monkeypatch, capsys, *flags) == f"error: {told}"
    assert storage.list_names(str(tmp_path / "out")) == [OWNER]


@pytest.mark.usefixtures("prepared")
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(checkpoint: str, phantom: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for i in range(6):  # more parts, so that there is time to be killed between two
        for source in sorted((phantom / "test").iterdir()):
            shutil.copy(source, films / f"{i}-{source.name}")
    flags = ("--checkpoint", checkpoint, "--images", str(films), "--device", "cpu")
    process = subprocess.Popen(
        [sys.executable, str(JOB), *flags, "--output", "killed"],
        cwd=tmp_path,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        parts = _wait_for_part(tmp_path / "killed" / "parts", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "detections.parquet").exists()
    written = {path: path.stat().st_mtime_ns for path in parts}
    refused = _job(*flags, "--output", "killed", "--augmentation", "flip", folder=tmp_path)
    assert refused.returncode == 2
    assert "(augmentation was 'none', is 'flip')" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in parts} == written
    again = _job(*flags, "--output", "killed", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    done = int(again.stdout.split("killed: ")[1].split()[0])
    assert 16 * len(written) <= done < 72
    assert f"predict: {72 - done}/{72 - done} images" in again.stdout
    assert not (tmp_path / "killed" / "parts").exists()
    whole = _job(*flags, "--output", "whole", "--workers", "1", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "restart will fail" not in whole.stderr
    for name in ("detections.parquet", "rejects.csv", "predictions.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    third = _job(*flags, "--output", "killed", folder=tmp_path)
    assert third.returncode == 0
    assert "holds these predictions already" in third.stdout
    assert "ray 2" not in third.stdout  # nothing to do: no cluster is asked


def _wait_for_part(folder: Path, process: "subprocess.Popen[bytes]") -> list[Path]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        parts = sorted(folder.glob("part-*.parquet"))
        if parts:
            return parts
        assert process.poll() is None, "the run ended before a part was seen"
        time.sleep(0.01)
    pytest.fail("no part was written")


def test_a_folder_of_ones_own_films_in_all_outputs(checkpoint: str, films: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    flags = ("--checkpoint", checkpoint, "--checkpoint", str(other), "--images", str(films), "--output", "out")
    done = _job(*flags, "--coco", "out/c.json", "--overlay", "png", "--dicom-sr", "sr", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 images, 1 refused" in done.stdout
    assert "not for clinical use" in done.stdout.splitlines()[-2]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["job"], told["exit"], told["images"], told["refused"]) == ("predict", 0, 12, 1)
    (reject,) = storage.read_csv(str(tmp_path / "out" / "rejects.csv"))
    assert reject["file"] == str(films / "broken.dcm")
    tables = [
        detections_from_table(storage.read_table(str(tmp_path / "out" / f"{name}.parquet"))) for name in ("c", "other")
    ]
    names = [found.image_id for found in tables[0]]
    assert len(names) == 12
    assert "patient1/1.2.1" in names
    assert names == sorted(names) == [found.image_id for found in tables[1]]
    for name in ("c", "other"):
        assert storage.exists(str(tmp_path / "out" / f"c-{name}.json"))
        assert (tmp_path / "png" / name / "patient1" / "1.2.1.png").exists()
        assert len(list((tmp_path / "sr" / name).rglob("*.dcm"))) == 12


def test_a_run_predicts_with_each_checkpoint_of_each_member(prepared: str, tmp_path: Path) -> None:
    fingerprint = open_dataset(prepared).fingerprint
    members = [
        Member("yolox-1", "a", 0.1, (f"{tmp_path}/best/yolox-1",)),
        Member("fcos-1", "b", 0.1, (f"{tmp_path}/best/fcos-1/fold-0", f"{tmp_path}/best/fcos-1/fold-1")),
    ]
    write_members(str(tmp_path / "best"), members, fingerprint, synthetic=True)
    best = f"{tmp_path}/best"
    wanted = {"yolox-1": f"{best}/yolox-1", "fcos-1-0": f"{best}/fcos-1/fold-0", "fcos-1-1": f"{best}/fcos-1/fold-1"}
    assert name_checkpoints([], str(tmp_path)) == wanted
    assert name_checkpoints([], best) == wanted


def test_checkpoints_are_called_by_the_shortest_end_of_their_folders_that_tells_them_apart() -> None:
    assert name_checkpoints(["/a/step-1"]) == {"detections": "/a/step-1"}
    assert name_checkpoints(["/a/step-1", "/b/step-2/"]) == {"step-1": "/a/step-1", "step-2": "/b/step-2"}
    assert name_checkpoints(["/r/a/step-1", "/r/b/step-1"]) == {"a-step-1": "/r/a/step-1", "b-step-1": "/r/b/step-1"}
    with pytest.raises(InputError, match="/a: given twice"):
        name_checkpoints(["/a", "/a/"])
