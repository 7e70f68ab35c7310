"""Which work runs on which nodes, and what is refused because it never could."""

import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.nodes import ROOT, Job, Nodes
from vbd.cluster import placement
from vbd.cluster.nodes import Cluster, Node, NodeType, types_of
from vbd.cluster.placement import check_decoding, check_workers, rooms, selector_for, use_gpus
from vbd.config import Device, RunOptions, SearchConfig
from vbd.config.presets import preset_of
from vbd.errors import InputError
from vbd.search.tune.tuner import needs_of

HEAD = Node({"node:__internal_head__": 1}, {"vbd-role": "head"})
CPU_NODE = Node({"CPU": 4}, {"vbd-role": "cpu"}, "cpu_spot")
GPU_NODE = Node({"CPU": 8, "GPU": 1}, {"vbd-role": "gpu"}, "gpu_spot")
CPU_TYPE = NodeType("cpu_spot", {"CPU": 4}, {"vbd-role": "cpu"}, most=3)
GPU_TYPE = NodeType("gpu_spot", {"CPU": 8, "GPU": 1}, {"vbd-role": "gpu"}, most=2)
LAPTOP = Cluster((Node({"CPU": 2, "node:__internal_head__": 1}, {}),))
FIXED = Cluster((HEAD, CPU_NODE, GPU_NODE))
FROM_ZERO = Cluster((HEAD,), (CPU_TYPE, GPU_TYPE), most_workers=4)
UNKNOWN = Cluster((HEAD,), is_open=True)
SEARCH = preset_of("smoke")


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(placement, "look", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("cluster", "decoding", "training", "on_gpu"),
    [
        (LAPTOP, {}, {}, {}),
        (FIXED, {"vbd-role": "cpu"}, {"vbd-role": "cpu"}, {"vbd-role": "gpu"}),
        (FROM_ZERO, {"vbd-role": "cpu"}, {"vbd-role": "cpu"}, {"vbd-role": "gpu"}),
        (Cluster((HEAD, CPU_NODE)), {"vbd-role": "cpu"}, {"vbd-role": "cpu"}, {}),
        (Cluster((HEAD, GPU_NODE)), {"vbd-role": "gpu"}, {"vbd-role": "gpu"}, {"vbd-role": "gpu"}),
        (Cluster((HEAD,), (GPU_TYPE,)), {"vbd-role": "gpu"}, {"vbd-role": "gpu"}, {"vbd-role": "gpu"}),
    ],
    ids=["laptop", "both", "both to come", "cpu only", "gpu only", "gpu only, to come"],
    indirect=["cluster"],
)
def test_each_kind_of_work_goes_where_it_belongs(
    cluster: Cluster, decoding: dict[str, str], training: dict[str, str], on_gpu: dict[str, str]
) -> None:
    assert selector_for("decoding") == decoding
    assert selector_for("training") == training
    assert selector_for("training", gpu=True) == on_gpu


def test_a_type_that_may_start_no_node_counts_for_nothing() -> None:
    cluster = Cluster((HEAD, GPU_NODE), (NodeType("cpu_spot", {"CPU": 4}, {"vbd-role": "cpu"}, most=0),))
    assert selector_for("decoding", cluster=cluster) == {"vbd-role": "gpu"}
    assert not cluster.grows


@pytest.mark.parametrize(
    ("cluster", "device", "wanted"),
    [
        (LAPTOP, "auto", False),
        (FIXED, "auto", True),
        (FIXED, "cpu", False),
        (FROM_ZERO, "auto", True),
        (FROM_ZERO, "cpu", False),
        (FROM_ZERO, "cuda", True),
        (UNKNOWN, "auto", False),
        (UNKNOWN, "cuda", True),
    ],
    indirect=["cluster"],
)
def test_gpus_are_asked_for_where_there_are_some_or_may_come(cluster: Cluster, device: Device, wanted: bool) -> None:
    assert use_gpus(device) is wanted


@pytest.mark.parametrize("cluster", [FROM_ZERO], indirect=True)
def test_there_is_room_for_what_may_come(cluster: Cluster) -> None:
    assert cluster.rooms({"CPU": 1}, {}, now=True) == 0
    assert rooms({"GPU": 1}, {}) == 2
    assert rooms({"CPU": 2}, {"vbd-role": "cpu"}) == 6
    assert rooms({"CPU": 8}, {}) == 2  # the other types are too small
    assert rooms({"CPU": 4}, {}) == 2 * 2 + 2  # four workers in all: the larger ones first
    there = Cluster((HEAD, GPU_NODE), cluster.types, most_workers=4)
    assert there.rooms({"GPU": 1}, {}) == 2  # what is there is one of those that may be there


@pytest.mark.parametrize(
    ("cluster", "settings", "told"),
    [
        (FROM_ZERO, {"gpus_per_trial": 4}, r"1 worker\(s\) of a trial of 4 GPU each.*at most 2 gpu_spot of 1 GPU"),
        (FROM_ZERO, {"workers_per_trial": 3}, r"3 worker\(s\) of a trial of 1 GPU each.*2 gpu_spot of 1 GPU; use"),
        (FROM_ZERO, {"cpus_per_trial": 16}, r"of 16 CPU each.*2 gpu_spot of 8 CPU"),
        (Cluster((HEAD,), (CPU_TYPE,)), {"gpus_per_trial": 1}, r"a GPU is asked for.*its autoscaler starts no nodes"),
        (FIXED, {"gpus_per_trial": 2}, r"of 2 GPU each: the cluster has 1 GPU.*and does not grow"),
        (Cluster((HEAD,)), {}, r"of 1 CPU each: the cluster has 0 CPU on 1 node"),
    ],
    indirect=["cluster"],
)
def test_a_trial_that_never_fits_says_which_resource_is_missing(
    cluster: Cluster, settings: dict[str, float], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        needs_of(_search(**settings), RunOptions())


def test_a_trial_asks_for_what_it_is_told_and_by_default_for_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "look", lambda: FROM_ZERO)
    assert needs_of(_search(), RunOptions()).each == {"CPU": 1, "GPU": 1}
    assert needs_of(_search(), RunOptions(device="cpu")).each == {"CPU": 1}
    assert needs_of(_search(gpus_per_trial=0.5, cpus_per_trial=3), RunOptions()).each == {"CPU": 3, "GPU": 0.5}
    assert needs_of(_search(workers_per_trial=2), RunOptions(device="cuda")).number == 2
    monkeypatch.setattr(placement, "look", lambda: LAPTOP)
    assert needs_of(_search(), RunOptions()).each == {"CPU": 1}


@pytest.mark.parametrize("cluster", [UNKNOWN], indirect=True)
def test_a_cluster_that_grows_in_unknown_ways_is_left_alone(cluster: Cluster) -> None:
    check_workers(100, {"CPU": 64, "GPU": 8})
    assert check_decoding(1) == {}


@pytest.mark.parametrize("cluster", [Cluster((HEAD, Node({"CPU": 0, "GPU": 1}, {"vbd-role": "gpu"})))], indirect=True)
def test_decoding_without_any_core_is_refused(cluster: Cluster) -> None:
    with pytest.raises(InputError, match=r"1 task\(s\) of 1 CPU each: the cluster has 0 CPU on 1 node"):
        check_decoding(1)


@pytest.mark.parametrize("cluster", [FIXED], indirect=True)
def test_what_makes_batches_is_counted_on_the_nodes_where_it_runs(cluster: Cluster) -> None:
    check_workers(1, {"CPU": 8, "GPU": 1}, beside=4, selector={"vbd-role": "gpu"})
    with pytest.raises(InputError, match=r"5 CPU to make batches.*has 4 CPU.*--input loader"):
        check_workers(1, {"CPU": 8, "GPU": 1}, beside=5, selector={"vbd-role": "gpu"})


def test_the_types_are_those_of_cluster_yaml_without_the_head() -> None:
    config = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 8, "GPU": 1}, "labels": {"vbd-role": "gpu"}},
            "cpu": {"resources": {"CPU": 4}, "max_workers": 9},
        },
    }
    types, most_workers = types_of(config)
    assert [(kind.name, kind.most, kind.resources.get("GPU", 0)) for kind in types] == [("gpu", 4, 1), ("cpu", 4, 0)]
    assert types[0].labels == {"vbd-role": "gpu"}
    assert most_workers == 4


def test_what_a_job_waits_for_is_told_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clusters = iter([FROM_ZERO, FROM_ZERO, FROM_ZERO, FIXED, FIXED])

    class Looks(threading.Event):
        """Ends after four looks."""

        left = 4

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == 60
            self.left -= 1
            if not self.left:
                self.set()
            return self.is_set()

    monkeypatch.setattr(placement, "look", lambda: next(clusters))
    monkeypatch.setattr(placement, "autoscaler_news", lambda: "it starts 2 gpu_spot")
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    placement._tell(Looks(), {"CPU": 1, "GPU": 1}, {"vbd-role": "gpu"})
    waiting = "waiting for 1 CPU and 1 GPU on a node labelled vbd-role=gpu: no node has that yet; of the autoscaler: "
    assert capsys.readouterr().out.splitlines() == [
        *[waiting + "it starts 2 gpu_spot"] * 2,
        "the cluster has 3 node(s) now: room for 1 x 1 CPU and 1 GPU on a node labelled vbd-role=gpu",
    ]


def _search(**settings: float) -> SearchConfig:
    return replace(SEARCH, **settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- a cluster of processes


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head without cores, a node for decoding, and one with a GPU that is only a number."""
    with Nodes(VBD_PLACES=str(tmp_path_factory.mktemp("places") / "places.txt")) as nodes:
        nodes.add(cpus=1, labels={"vbd-role": "cpu"})
        nodes.add(cpus=2, gpus=1, labels={"vbd-role": "gpu"})
        yield nodes


@pytest.mark.slow
def test_cpu_nodes_decode_and_gpu_nodes_train_and_detect(labelled: Nodes, phantom: Path, tmp_path: Path) -> None:
    job = labelled.start([sys.executable, "-m", "tests.placed_work", str(phantom), str(tmp_path)], cwd=tmp_path)
    assert job.end() == 0, job.output
    cpu, gpu = (node.name for node in labelled.nodes)
    ran: dict[str, set[str]] = defaultdict(set)
    for line in Path(labelled.environment["VBD_PLACES"]).read_text().splitlines():
        what, node = line.split()
        ran[what].add(node)
    assert ran == {"prepare": {cpu}, "decode": {cpu}, "detect": {gpu}, "trial": {gpu}, "measure": {gpu}}
    told = next(line for line in job.output.splitlines() if line.startswith("on the head "))
    # Ray Data's own, which it puts beside the driver.
    assert set(json.loads(told.removeprefix("on the head "))) <= {
        *("ActorLocationTracker", "_AutoscalingCoordinatorActor", "_StatsActor")
    }


@pytest.mark.slow
def test_a_trial_that_no_node_can_hold_ends_the_job_in_one_line(labelled: Nodes, prepared: str, tmp_path: Path) -> None:
    where = ("--data", prepared, "--storage", str(tmp_path), "--families", "yolox", "--trials", "1", "--steps", "3")
    job = labelled.start(["jobs/tune.py", "search", *where, "--set", "gpus_per_trial=2"], cwd=tmp_path)
    _assert_ended_by(
        job, "1 worker(s) of a trial of 2 GPU each: the cluster has 1 GPU on 1 node(s) labelled vbd-role=gpu"
    )


@pytest.mark.slow
def test_so_do_other_versions_on_a_node(labelled: Nodes, phantom: Path, tmp_path: Path) -> None:
    pretend = (
        "import runpy, sys, vbd.cluster.versions as v; real = v.installed; "
        "v.installed = lambda: real() | {'numpy': '1.26.0'}"
    )
    code = (
        f"{pretend}; sys.path.insert(0, '{ROOT}/jobs'); runpy.run_path('{ROOT}/jobs/prepare.py', run_name='__main__')"
    )
    flags = ("--source", str(phantom), "--output", "out", "--image-size", "64")
    job = labelled.start([sys.executable, "-c", code, *flags], cwd=tmp_path)
    _assert_ended_by(job, "and the driver has 1.26.0; install on both what constraints.txt says")


def _assert_ended_by(job: Job, told: str) -> None:
    assert job.end() == 2, job.output
    (error,) = job.errors
    assert told in error
    assert "Traceback" not in job.output
    assert told in json.loads(job.output.splitlines()[-1])["reason"]
