"""A driver that is killed and a node that is lost, in the middle of a job: the same files as if nothing had happened."""

from pathlib import Path

import pytest

from tests.data.folders import hashes_of
from tests.ensemble.checkpoints import write_random
from tests.faults.injected import Fault, Faults
from tests.faults.weights import are_equal, undisturbed_weights
from tests.nodes import Nodes
from vbd.config import PrepareConfig, RunOptions
from vbd.data.prepare.dataset import prepare
from vbd.models.weights import load_tensors
from vbd.predict.request import Request, write_predictions

pytestmark = pytest.mark.slow  # jobs on a cluster

SHORT = ("image_size=64", "variant=nano", "batch_size=4", "steps=9", "warmup_steps=1", "report_every=3")


def _lose_driver_then_node(
    nodes: Nodes, command: list[str], *holds: Fault, folder: Path, then: tuple[Fault, ...] = ()
) -> str:
    """Runs a job that loses its driver while its workers are held, and a node when it has been submitted again.

    There may be more faults `then`. Returns what the second one told.
    """
    first = Faults(folder / "faults-1", *holds)
    job = nodes.start(command, cwd=folder, log="first.txt", **first.environment())
    job.wait_until(lambda: len(first.held) == sum(hold.times for hold in holds))
    job.kill()
    first.let_go()  # those that do not know yet that they are to die

    second = Faults(folder / "faults-2", *holds, *then)
    job = nodes.start(command, cwd=folder, log="second.txt", **second.environment())
    job.wait_until(lambda: len(second.held) == sum(hold.times for hold in holds))
    (lost,) = (node for node in nodes.working if node.name == second.held[0].node)
    lost.kill()
    nodes.wait_until_lost(lost)
    second.let_go(*range(len(holds)))
    assert job.end() == 0, job.output
    assert not job.tracebacks, job.output
    assert not list(folder.rglob("out/**/*.tmp"))
    return job.output


def test_prepare_loses_its_driver_and_a_node_and_writes_the_same_bytes(
    nodes: Nodes, ray_session: None, phantom: Path, tmp_path: Path
) -> None:
    command = ["jobs/prepare.py", "--source", str(phantom), "--output", str(tmp_path / "out"), "--image-size", "64"]
    middles = [sorted((phantom / part).iterdir())[place].stem for part, place in (("train", 30), ("test", 10))]
    holds = [Fault("hold", "vbd.data.prepare.shards:_prepare_one", when=middle) for middle in middles]
    _lose_driver_then_node(nodes, [*command, "--folds", "3"], *holds, folder=tmp_path)
    prepare(str(phantom), str(tmp_path / "whole"), PrepareConfig(image_size=64, num_folds=3))
    assert hashes_of(tmp_path / "out") == hashes_of(tmp_path / "whole")


def test_training_loses_its_driver_and_a_node_and_ends_with_the_same_weights(
    nodes: Nodes, prepared: str, tmp_path: Path
) -> None:
    flags = ["--data", prepared, "--output", str(tmp_path / "out"), "--folds", "0"]
    command = ["jobs/train.py", *flags, *(word for item in SHORT for word in ("--set", item))]
    report = "vbd.training.folds.best:keep_if_best"
    hold = Fault("hold", report, when="'step': 6")
    manager = "ray.train.v2._internal.execution.checkpoint.checkpoint_manager:CheckpointManager"
    then = (Fault("kill", f"{manager}.register_checkpoint"),)
    told = _lose_driver_then_node(nodes, command, hold, folder=tmp_path, then=then)
    assert told.count("goes on from step 3") >= 2  # after the driver was lost, and after the node
    assert told.count("yolox-1-fold0: the process that watches over its workers died; tried again") == 1

    newest = max((tmp_path / "out" / "runs").glob("*/checkpoint_*/model.pt"))
    assert are_equal(load_tensors(str(newest)), undisturbed_weights(prepared, str(tmp_path / "out")))


def test_prediction_loses_its_driver_and_a_node_and_finds_the_same(
    nodes: Nodes, prepared: str, phantom: Path, tmp_path: Path
) -> None:
    checkpoint = write_random(tmp_path / "c", prepared, "yolox", image_size=64, batch_size=4)
    images = str(phantom / "train")
    command = ["jobs/predict.py", "--checkpoint", checkpoint, "--images", images, "--output", str(tmp_path / "out")]
    # The second part of sixteen images: what was found in another is on the disk by then, or is held back with it.
    held = sorted((phantom / "train").iterdir())[20].stem
    hold = Fault("hold", "vbd.predict.models:LoadedDetectors.detect", when=held)
    _lose_driver_then_node(nodes, [*command, "--device", "cpu"], hold, folder=tmp_path)
    request = Request({"detections": checkpoint}, images, str(tmp_path / "whole"))
    write_predictions(request, options=RunOptions(device="cpu"))
    assert hashes_of(tmp_path / "out") == hashes_of(tmp_path / "whole")
