"""Nodes that stand still for a while, or for so long that Ray gives them up, and nodes whose object store is full."""

import sys
from pathlib import Path

import pytest

from tests.data.folders import hashes_of
from tests.ensemble.checkpoints import write_random
from tests.faults.injected import Fault, Faults
from tests.nodes import Nodes, wait_until
from vbd.config import PrepareConfig, RunOptions
from vbd.data.prepare.dataset import prepare
from vbd.predict.request import Request, write_predictions

pytestmark = pytest.mark.slow  # jobs on a cluster

# Fills the object store of every node, and holds what it has put there.
_HOG = """
import time, numpy, ray
ray.init()

@ray.remote(num_cpus=0)
class Hog:
    def fill(self):
        self.held = [ray.put(numpy.ones(8_000_000, numpy.uint8)) for _ in range(12)]

hogs = [Hog.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote() for node in ray.nodes() if node["Alive"]]
ray.get([hog.fill.remote() for hog in hogs])
print("all are full", flush=True)
time.sleep(100_000)
"""


def test_what_a_node_does_that_was_given_up_and_comes_back_changes_nothing(
    nodes: Nodes, ray_session: None, phantom: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["jobs/prepare.py", "--source", str(phantom), "--output", str(out), "--image-size", "64", "--folds", "3"]
    middles = [sorted((phantom / part).iterdir())[place].stem for part, place in (("train", 30), ("test", 6))]
    holds = [Fault("hold", "vbd.data.prepare.shards:_prepare_one", when=middle) for middle in middles]
    faults = Faults(tmp_path / "faults", *holds)
    job = nodes.start(command, cwd=tmp_path, **faults.environment())
    job.wait_until(lambda: len(faults.held) == 2)
    (slow,) = (node for node in nodes.working if node.name == faults.held[0].node)
    slow.pause()
    nodes.wait_until_lost(slow)
    faults.let_go()
    job.wait_until(lambda: list(out.glob("receipts/*.json")))  # by the other node
    # Its calls last until its connections are closed: when it learns that it is dead, and writes on meanwhile. Were it never
    # to come back, gRPC would close them after seven minutes.
    slow.resume()
    assert job.end() == 0, job.output
    assert not job.tracebacks, job.output
    wait_until(lambda: not slow.pids, lambda: f"{slow.name} lives on")
    slow.kill()
    prepare(str(phantom), str(tmp_path / "whole"), PrepareConfig(image_size=64, num_folds=3))
    there = {name: value for name, value in hashes_of(out).items() if not name.endswith(".tmp")}
    assert there == hashes_of(tmp_path / "whole")


def test_prediction_bears_full_object_stores_and_a_node_that_stands_still_for_a_while(
    nodes: Nodes, prepared: str, phantom: Path, tmp_path: Path
) -> None:
    hog = nodes.start([sys.executable, "-c", _HOG], cwd=tmp_path, log="hog.txt")
    hog.wait_until(lambda: "all are full" in hog.output)
    before = _spilled(nodes)
    # Sixteen images of this size are four megabytes.
    checkpoint = write_random(tmp_path / "c", prepared, "yolox", image_size=512, batch_size=4)
    images = str(phantom / "train")
    command = ["jobs/predict.py", "--checkpoint", checkpoint, "--images", images, "--output", str(tmp_path / "out")]
    held = sorted((phantom / "train").iterdir())[50].stem
    faults = Faults(tmp_path / "faults", Fault("hold", "vbd.predict.models:LoadedDetectors.detect", when=held))
    job = nodes.start([*command, "--device", "cpu"], cwd=tmp_path, **faults.environment())
    job.wait_until(lambda: faults.held)
    (slow,) = (node for node in nodes.working if node.name == faults.held[0].node)
    slow.pause()
    faults.let_go()
    others = 5  # looks for it, in which Ray may notice, and not yet give it up
    seen = []
    wait_until(lambda: seen.append(slow.name in nodes.alive) or len(seen) >= others, lambda: "the dashboard is silent")
    slow.resume()
    assert job.end() == 0, job.output
    assert not job.tracebacks, job.output
    assert _spilled(nodes) > before
    hog.kill()
    request = Request({"detections": checkpoint}, images, str(tmp_path / "whole"))
    write_predictions(request, options=RunOptions(device="cpu"))
    assert hashes_of(tmp_path / "out") == hashes_of(tmp_path / "whole")


def _spilled(nodes: Nodes) -> int:
    """How many files the nodes have moved objects to."""
    return len([path for path in Path(nodes.folder).rglob("ray_spilled_objects*/*") if path.is_file()])
