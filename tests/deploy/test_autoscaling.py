"""The node types of cluster.yaml under Ray's real autoscaler, whose machines are processes of this one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import cluster
from tests.nodes import Nodes, wait_until

ASK = """
import json
import ray
ray.init(logging_level="ERROR")

def labels():
    return ray.get_runtime_context().get_node_labels()

asked = {"cpu": {"num_cpus": 1}, "gpu": {"num_cpus": 1, "num_gpus": 1}}
tasks = [ray.remote(**each, label_selector={"vbd-role": role})(labels).remote() for role, each in asked.items()]
print("ran " + json.dumps(dict(zip(asked, ray.get(tasks)))), flush=True)
"""


def _small(kind: dict[str, Any]) -> dict[str, Any]:
    """A node type with all that says when and where it is started, and hardly any resources."""
    resources = {"CPU": 1, "GPU": 1} if kind["labels"]["vbd-role"] == "gpu" else {"CPU": 1}
    kept = {name: kind[name] for name in ("labels", "max_workers", "priority") if name in kind}
    return kept | {"resources": resources, "idle_timeout_s": 10}


@pytest.mark.slow
def test_machines_come_for_their_work_and_leave_after_it(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(ASK)
    types = {name: _small(kind) for name, kind in cluster("aws")["available_node_types"].items() if name != "head"}
    # As one does where spot machines are scarce; they have to come last all the same.
    types["gpu_on_demand"]["max_workers"] = 8
    with Nodes(autoscaling=types) as nodes:
        assert nodes.alive == ["head"]
        driver = nodes.start([sys.executable, "ask.py"], cwd=tmp_path)
        assert driver.end(seconds=400) == 0
        told = next(line for line in driver.output.splitlines() if line.startswith("ran ")).removeprefix("ran ")
        labels = {role: (each["vbd-role"], each["market"]) for role, each in json.loads(told).items()}
        assert labels == {"cpu": ("cpu", "spot"), "gpu": ("gpu", "spot")}
        wait_until(lambda: nodes.alive == ["head"], lambda: f"still there: {nodes.alive}", seconds=400)
