"""The values a search tells Ray: what is told, and that Prometheus finds it where docs/monitoring.md says."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vbd.config import TrainConfig
from vbd.search.tune import metrics

T = TypeVar("T")
GUIDE = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
# Of the configuration that Ray writes for Prometheus, in the folder of its session.
WRITTEN = Path("metrics", "prometheus", "prometheus.yml")


class FakeGauge:
    """Keeps what is told, by name and tags."""

    told: dict[tuple[str, tuple[tuple[str, str], ...]], float]
    made: dict[str, tuple[str, ...]]

    def __init__(self, name: str, description: str, *, tag_keys: tuple[str, ...]):
        assert description
        self.name, self.keys, self.tags = name, tag_keys, dict[str, str]()
        FakeGauge.made[name] = tag_keys

    def set_default_tags(self, tags: dict[str, str]) -> "FakeGauge":
        self.tags = tags
        return self

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        of_value = self.tags | (tags or {})
        assert set(of_value) == set(self.keys)
        FakeGauge.told[self.name, tuple(of_value.values())] = value  # type: ignore[index]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[Any, float]:
    FakeGauge.told, FakeGauge.made = {}, {}
    monkeypatch.setattr(metrics, "Gauge", FakeGauge)
    return FakeGauge.told  # type: ignore[return-value]


def test_a_trial_tells_its_last_report_with_family_and_policy(told: dict[Any, float]) -> None:
    trial = metrics.TrialMetrics(TrainConfig(detector="fcos", variant="resnet18", policy="E"), "ab12")
    report = {"step": 20, "loss": 1.5, "score": 0.25, "images_per_second": 7.0, "gradient_norm": 3.0}
    trial.report(report)
    of = ("ab12", "fcos", "E")
    names = ("vbd_step", "vbd_loss", "vbd_score", "vbd_images_per_second")
    assert told == {(name, of): value for name, value in zip(names, (20, 1.5, 0.25, 7.0), strict=True)}


@pytest.mark.parametrize("score", [math.nan, None])
def test_a_fold_without_findings_leaves_the_last_score(told: dict[Any, float], score: float | None) -> None:
    trial = metrics.TrialMetrics(TrainConfig(), "ab12")
    trial.report({"step": 20, "score": 0.25})
    trial.report({"step": 40, "score": score})
    assert told == {("vbd_step", ("ab12", "yolox", "A")): 40, ("vbd_score", ("ab12", "yolox", "A")): 0.25}


def test_a_search_tells_its_trials_best_scores_and_hours(told: dict[Any, float]) -> None:
    search = metrics.SearchMetrics("first")
    search.update({"running": 2, "failed": 0}, {"yolox": 0.3, "fcos": math.nan}, device_hours=1.5)
    assert told == {
        ("vbd_trials", ("first", "running")): 2,
        ("vbd_trials", ("first", "failed")): 0,
        ("vbd_best_score", ("first", "yolox")): 0.3,
        ("vbd_device_hours", ("first",)): 1.5,
    }
    search.update({}, {}, device_hours=1.6, forecast_device_hours=4.0)
    assert told["vbd_forecast_device_hours", ("first",)] == 4.0


def test_the_guide_lists_every_metric_with_its_tags(told: dict[Any, float]) -> None:
    metrics.TrialMetrics(TrainConfig(), "ab12")
    metrics.SearchMetrics("first")
    rows = [line.split("|")[1:3] for line in GUIDE.splitlines() if line.startswith("| `ray_vbd_")]
    listed = {name.strip(" `"): tuple(tag.strip(" `") for tag in tags.split(",")) for name, tags in rows}
    assert listed == {f"ray_{name}": tags for name, tags in FakeGauge.made.items()}


# ------------------------------------------------------------------------------------------------- a Ray of its own

_SEARCH = """
import sys
import ray
from vbd.config import TrainConfig
from vbd.search.tune.metrics import SearchMetrics, TrialMetrics

@ray.remote
class Trial:
    def report(self, trial_id, loss):
        TrialMetrics(TrainConfig(policy="E"), trial_id).report(
            {"step": 20, "loss": loss, "score": 0.25, "images_per_second": 7.0})

ray.init(address="local", num_cpus=1, dashboard_port=0, object_store_memory=100_000_000, log_to_driver=False,
         _temp_dir=sys.argv[1], _system_config={"metrics_report_interval_ms": 1000})
trial = Trial.remote()
for trial_id, loss in (("one", 0.5), ("two", 0.75)):  # one process for both, as in a search
    ray.get(trial.report.remote(trial_id, loss))
SearchMetrics("first").update({"running": 2}, {"yolox": 0.25}, device_hours=1.5, forecast_device_hours=4.0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """The folder of a Ray with a dashboard, in which two trials and a search have told their values."""
    folder = Path(tempfile.mkdtemp(prefix="vbd", dir="/tmp"))
    process = subprocess.Popen(
        [sys.executable, "-c", _SEARCH, str(folder)],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        assert any(line == "ready\n" for line in process.stdout), "Ray did not start"
        yield folder / "session_latest"
    finally:
        process.stdin.close()  # it ends by itself, and what it started with it
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _soon(look: Callable[[], T | None], what: str) -> T:
    for _ in range(150):
        try:
            found = look()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"{what}: nothing after 30 s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prometheus(session: Path, tmp_path: Path) -> Iterator[str]:
    """Prometheus with the configuration that Ray has written, but that it looks every second; gives its address."""
    program = shutil.which("prometheus")
    if program is None:
        reason = "prometheus is not installed; on Debian: apt-get install prometheus, or make prometheus as root"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    assert f"--config.file=/tmp/ray/session_latest/{WRITTEN} " in GUIDE
    written = session / WRITTEN
    config = tmp_path / "prometheus.yml"
    config.write_text(_soon(lambda: written.read_text(), str(written)).replace("10s", "1s"))
    address = f"127.0.0.1:{_free_port()}"
    arguments = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={address}"]
    process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def _ask(prometheus: str, query: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(
        f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=5
    ) as answer:
        return json.load(answer)["data"]["result"]


@pytest.mark.slow
def test_prometheus_finds_the_values_by_the_configuration_that_ray_writes(prometheus: str) -> None:
    losses = _soon(lambda: _ask(prometheus, "ray_vbd_loss"), "ray_vbd_loss")
    by_trial = {found["metric"]["trial"]: float(found["value"][1]) for found in losses}
    assert by_trial == {"one": 0.5, "two": 0.75}
    assert {found["metric"]["family"] + found["metric"]["policy"] for found in losses} == {"yoloxE"}
    for query, wanted in (
        ("ray_vbd_score{trial='one'}", 0.25),
        ("ray_vbd_images_per_second{trial='two'}", 7.0),
        ("ray_vbd_step{trial='two'}", 20.0),
        ("ray_vbd_trials{run='first',state='running'}", 2.0),
        ("ray_vbd_best_score{run='first',family='yolox'}", 0.25),
        ("ray_vbd_device_hours{run='first'}", 1.5),
        ("ray_vbd_forecast_device_hours{run='first'}", 4.0),
    ):
        found = _soon(lambda query=query: _ask(prometheus, query), query)  # type: ignore[misc]
        assert [float(one["value"][1]) for one in found] == [wanted], query
