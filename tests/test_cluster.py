"""What the lines of a worker say about where they come from."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbd.cluster import nodes as cluster
from vbd.cluster.nodes import on_host
from vbd.errors import StoreError
from vbd.search.kept.trial import TrialFolder
from vbd.search.tune import trial as tuning
from vbd.training.folds import worker as run_worker


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(cluster.socket, "gethostname", lambda: "gpu-7")
    on_host.cache_clear()
    yield
    on_host.cache_clear()


def _nodes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}] * count)


@pytest.mark.parametrize(("count", "told"), [(1, ""), (2, " on gpu-7")])
def test_a_host_is_told_where_there_are_others(monkeypatch: pytest.MonkeyPatch, count: int, told: str) -> None:
    _nodes(monkeypatch, count)
    assert on_host() == told


def test_without_ray_there_is_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert on_host() == ""


def test_each_line_of_a_worker_of_a_run_tells_run_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    _nodes(monkeypatch, 3)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    run_worker._teller("yolox-fold0")("step 1\nstep 2")
    assert out.getvalue() == "yolox-fold0 on gpu-7: step 1\nyolox-fold0 on gpu-7: step 2\n"


def test_a_trial_that_waits_for_its_store_tells_trial_and_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _nodes(monkeypatch, 2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    answers = iter([StoreError("s3://b: does not answer"), "there"])

    def action() -> str:
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        return str(answer)

    assert tuning.patiently(action, TrialFolder(str(tmp_path), "c93903d551")) == "there"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("trial c93903d551 on gpu-7: ")
    assert "does not answer" in line
