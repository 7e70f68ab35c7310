"""An object store that does not answer, cuts uploads off or is gone, in the middle of a job: nothing is lost or half there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.folders import hashes_of
from tests.ensemble.checkpoints import write_random
from tests.faults.injected import Fault, Faults
from tests.faults.weights import are_equal, undisturbed_weights
from tests.nodes import Job, Nodes, Proxy
from vbd import storage
from vbd.config import PrepareConfig, RunOptions
from vbd.data.prepare.dataset import prepare
from vbd.models.weights import load_tensors
from vbd.predict.request import Request, write_predictions

pytestmark = pytest.mark.slow  # jobs on a cluster

_WAITS = "; tried again for "


@pytest.fixture
def proxy(s3_bucket: str) -> Iterator[Proxy]:
    """On the way of the jobs to the store; these tests themselves look past it."""
    there = Proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    yield there
    there.shut()


def _gone_for_good(nodes: Nodes, proxy: Proxy, command: list[str], hold: Fault, *, place: str, folder: Path) -> None:
    """The job ends in a line that names the store."""
    faults = Faults(folder / "faults-gone", hold)
    patience = {"VBD_PATIENCE_SECONDS": "1", "AWS_ENDPOINT_URL": proxy.url}
    job = nodes.start(command, cwd=folder, log="gone.txt", **faults.environment(**patience))
    job.wait_until(faults.is_held)
    proxy.shut()
    faults.let_go()
    assert job.end() == 2, job.output
    proxy.open()
    (error,) = job.errors
    assert place in error, job.output
    assert not job.tracebacks, job.output


def _away_for_a_while(nodes: Nodes, proxy: Proxy, command: list[str], *holds: Fault, folder: Path) -> Job:
    """The same command goes on, whatever the store does at the first hold: cut uploads; at the last: refuse."""
    faults = Faults(folder / "faults-away", *holds)
    job = nodes.start(command, cwd=folder, log="away.txt", **faults.environment(AWS_ENDPOINT_URL=proxy.url))
    for number, _ in enumerate(holds):
        job.wait_until(lambda number=number: faults.is_held(number))
        is_last = number == len(holds) - 1
        told = job.output.count(_WAITS)
        proxy.shut() if is_last else proxy.cut_uploads_after(1000)
        faults.let_go(number)
        job.wait_until(lambda told=told: job.output.count(_WAITS) > told)
        proxy.open() if is_last else proxy.cut_uploads_after(None)
    assert job.end() == 0, job.output
    assert not job.tracebacks, job.output
    return job


def _downloaded(location: str, folder: Path) -> Path:
    storage.copy_folder(location, str(folder))
    return folder


def test_prepare_waits_for_its_store(
    nodes: Nodes, proxy: Proxy, ray_session: None, s3_bucket: str, phantom: Path, tmp_path: Path
) -> None:
    out = f"{s3_bucket}/away/data"
    command = ["jobs/prepare.py", "--source", str(phantom), "--output", out, "--image-size", "64", "--folds", "3"]
    films = [film.stem for film in sorted((phantom / "train").iterdir())]
    at = "vbd.data.prepare.shards:_prepare_one"
    _gone_for_good(nodes, proxy, command, Fault("hold", at, when=films[20]), place=out, folder=tmp_path)
    # The receipt comes last, and was not written: which images are whole is seen by reading them.
    assert storage.list_names(f"{out}/receipts") in ([], ["shard-00001.json"])
    holds = [Fault("hold", at, when=films[place]) for place in (30, 50)]
    _away_for_a_while(nodes, proxy, command, *holds, folder=tmp_path)
    prepare(str(phantom), str(tmp_path / "whole"), PrepareConfig(image_size=64, num_folds=3))
    assert hashes_of(_downloaded(out, tmp_path / "copy")) == hashes_of(tmp_path / "whole")


def test_prediction_waits_for_its_store(
    nodes: Nodes, proxy: Proxy, prepared: str, s3_bucket: str, phantom: Path, tmp_path: Path
) -> None:
    out, images = f"{s3_bucket}/away/found", f"{s3_bucket}/away/films"
    storage.copy_folder(str(phantom / "train"), images)
    checkpoint = write_random(tmp_path / "c", prepared, "yolox", image_size=64, batch_size=4)
    command = ["jobs/predict.py", "--checkpoint", checkpoint, "--images", images, "--output", out, "--device", "cpu"]
    films = [film.stem for film in sorted((phantom / "train").iterdir())]
    at = "vbd.predict.images:square_images"
    _gone_for_good(nodes, proxy, command, Fault("hold", at, when=films[20]), place=f"{s3_bucket}/away", folder=tmp_path)
    _away_for_a_while(nodes, proxy, command, Fault("hold", at, when=films[50]), folder=tmp_path)
    request = Request({"detections": checkpoint}, images, str(tmp_path / "whole"))
    write_predictions(request, options=RunOptions(device="cpu"))
    assert hashes_of(_downloaded(out, tmp_path / "copy")) == hashes_of(tmp_path / "whole")


def test_training_waits_for_its_store(
    nodes: Nodes, proxy: Proxy, prepared: str, s3_bucket: str, tmp_path: Path
) -> None:
    out = f"{s3_bucket}/away/trained"
    sets = ("image_size=64", "variant=nano", "batch_size=4", "steps=9", "warmup_steps=1", "report_every=3")
    command = ["jobs/train.py", "--data", prepared, "--output", out, "--folds", "0"]
    command += [word for item in sets for word in ("--set", item)]
    at = "vbd.training.folds.best:keep_if_best"
    _gone_for_good(nodes, proxy, command, Fault("hold", at, when="'step': 3"), place=out, folder=tmp_path)
    _away_for_a_while(nodes, proxy, command, Fault("hold", at, when="'step': 6"), folder=tmp_path)
    runs = _downloaded(f"{out}/runs", tmp_path / "runs")
    newest = max(runs.glob("*/checkpoint_*/model.pt"))
    assert are_equal(load_tensors(str(newest)), undisturbed_weights(prepared, out))
