"""deploy/spot_watch.py against metadata services of our own, and its drain against a real Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.files import ROOT
from tests.deploy.metadata import Metadata, metadata
from tests.nodes import Nodes, wait_until

WATCH = [sys.executable, str(ROOT / "deploy" / "spot_watch.py")]
RAY = """#!/usr/bin/env bash
echo "$RAY_ADDRESS: $*" >> "$ASKED"
[ "$(wc -l < "$ASKED")" -gt "${REFUSED:-0}" ]
"""


@pytest.fixture
def cloud() -> Iterator[Metadata]:
    with metadata() as server:
        yield server


class Watch:
    """The watcher as a process, with a `ray` that only tells what it was asked, and refuses that so many times."""

    def __init__(self, folder: Path, name: str, endpoint: str, *, refused: int = 0):
        (folder / "ray").write_text(RAY)
        (folder / "ray").chmod(0o755)
        self.asked = folder / "asked"
        self.asked.touch()
        self.log = folder / "log"
        more = {"PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(self.asked), "REFUSED": str(refused)}
        command = [*WATCH, "--cloud", name, "--endpoint", endpoint, "--address", "10.0.0.1:6379", "--every", "0.05"]
        with open(self.log, "w") as stream:
            # A proxy that the machine is told to use knows nothing of the machine.
            environment = os.environ | more | {"http_proxy": "http://127.0.0.1:1"}
            self.process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_notice_drains_the_node_and_nothing_else_does(name: str, cloud: Metadata, tmp_path: Path) -> None:
    with Watch(tmp_path, name, cloud.url) as watch:
        wait_until(lambda: cloud.looks >= 3, watch.log.read_text)
        assert watch.asked.read_text() == ""
        assert watch.process.poll() is None
        cloud.take_back(seconds=100)
        assert watch.process.wait(120) == 0
    asked = watch.asked.read_text().splitlines()
    assert len(asked) == 1
    command, seconds = asked[0].rsplit(" ", 1)
    assert command == (
        "10.0.0.1:6379: drain-node --address 10.0.0.1:6379 --reason DRAIN_NODE_REASON_PREEMPTION "
        "--reason-message spot machine taken back --deadline-remaining-seconds"
    )
    assert 0 <= int(seconds) <= (100 if name == "aws" else 30)


def test_what_ray_refused_is_asked_again(cloud: Metadata, tmp_path: Path) -> None:
    cloud.take_back(seconds=100)
    with Watch(tmp_path, "aws", cloud.url, refused=2) as watch:
        assert watch.process.wait(120) == 0
    assert len(watch.asked.read_text().splitlines()) == 3


def test_a_service_that_fails_is_asked_again_and_told_once(cloud: Metadata, tmp_path: Path) -> None:
    cloud.broken = True
    with Watch(tmp_path, "aws", cloud.url) as watch:
        wait_until(lambda: cloud.looks >= 3, watch.log.read_text)
        assert watch.asked.read_text() == ""
        cloud.broken = False
        cloud.take_back(seconds=100)
        assert watch.process.wait(120) == 0
    lines = watch.log.read_text().splitlines()
    assert len(lines) == 2
    assert "HTTP Error 500" in lines[0]


def test_it_needs_nothing_that_a_node_may_lack() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", WATCH[1], "--help"], capture_output=True, text=True, check=True)
    assert "--cloud {aws,gcp}" in done.stdout


WHERE = """
import json, pathlib, time
import ray
ray.init(logging_level="ERROR")
names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
print("ids " + json.dumps({name: id for id, name in names.items()}), flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.1)
where = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(lambda: ray.get_runtime_context().get_node_id())
print("ran " + json.dumps([names[id] for id in ray.get([where.remote() for _ in range(6)])]), flush=True)
"""


@pytest.mark.slow
def test_a_node_with_a_notice_gets_no_more_work(cloud: Metadata, tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text(WHERE)
    with Nodes() as nodes:
        nodes.add()
        nodes.add()
        driver = nodes.start([sys.executable, "where.py"], cwd=tmp_path)
        driver.wait_until(lambda: "ids " in driver.output)
        ids = json.loads(_told(driver.output, "ids "))
        cloud.take_back(seconds=100)
        command = [*WATCH, "--cloud", "aws", "--endpoint", cloud.url, "--address", nodes.address]
        subprocess.run([*command, "--node-id", ids["node-0"]], env=nodes.environment, check=True, timeout=240)
        (tmp_path / "go").touch()
        assert driver.end() == 0
        assert json.loads(_told(driver.output, "ran ")) == ["node-1"] * 6


def _told(output: str, start: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(start)).removeprefix(start)
