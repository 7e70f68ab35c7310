"""A schedule in phases, and runs that are trained in parts of their steps."""

import dataclasses
import math
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from tests.training.runs import CPU, Reports, assert_same, config_of
from vbd.config import TrainConfig
from vbd.config.phases import with_phase
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.models.weights import load_tensors
from vbd.training.loop import train
from vbd.training.meter import Meter
from vbd.training.optimizer import learning_rate_at

PARENT = config_of("yolox", steps=6, report_every=4, strength=0.5)


def _assert_same_end(one: Path, other: Path) -> None:
    for name in ("model.pt", "state.pt"):
        assert_same(load_tensors(str(one / "6" / name)), load_tensors(str(other / "6" / name)), name)


def test_the_learning_rate_is_multiplied_from_the_phase_on() -> None:
    plain = TrainConfig(steps=100, warmup_steps=10, learning_rate=1e-3)
    phased = with_phase(with_phase(plain, 5, strength=1.0, rate=0.8), 50, strength=1.0, rate=1.2)
    for step in range(100):
        factor = 1 if step < 5 else 0.8 if step < 50 else 1.2
        assert learning_rate_at(step, phased) == pytest.approx(factor * learning_rate_at(step, plain), rel=1e-12)
    assert [learning_rate_at(step, phased) for step in range(5)] == [learning_rate_at(s, plain) for s in range(5)]
    # As before there were phases, to the last bit.
    progress = (70 - 10) / 90
    assert learning_rate_at(70, plain) == 1e-3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@pytest.mark.parametrize("policy", ["E", "D"])
def test_a_child_that_goes_on_from_its_parent_ends_like_a_run_from_scratch(
    policy: str, prepared: str, tmp_path: Path
) -> None:
    """Bit for bit; with D what is drawn how often changes too."""
    dataset, parent = open_dataset(prepared), dataclasses.replace(PARENT, policy=policy, repeat_threshold=0.2)
    child = with_phase(parent, 3, strength=0.9, rate=1.2)
    reports = Reports(tmp_path / "parent")
    train(parent, dataset, options=CPU, report=reports, until=3)
    assert [metrics["step"] for metrics in reports.metrics] == [3]
    start = str(tmp_path / "parent" / "3")
    train(child, dataset, options=CPU, report=Reports(tmp_path / "child"), resume_from=start)
    train(child, dataset, options=CPU, report=Reports(tmp_path / "scratch"))
    _assert_same_end(tmp_path / "child", tmp_path / "scratch")
    train(parent, dataset, options=CPU, report=Reports(tmp_path / "parent"), resume_from=start)
    with pytest.raises(AssertionError):
        _assert_same_end(tmp_path / "child", tmp_path / "parent")


def test_only_phases_that_are_still_to_come_may_differ_from_the_checkpoints(prepared: str, tmp_path: Path) -> None:
    dataset = open_dataset(prepared)
    child = with_phase(PARENT, 2, strength=0.9, rate=1.2)
    train(child, dataset, options=CPU, report=Reports(tmp_path), until=3)
    others = (
        PARENT,
        with_phase(child, 2, strength=0.8, rate=1.2),
        with_phase(child, 2, strength=0.9, rate=1.1),
        with_phase(PARENT, 1, strength=0.9, rate=1.2),
        dataclasses.replace(child, seed=9),
    )
    for other in others:
        with pytest.raises(InputError, match="another configuration"):
            train(other, dataset, options=CPU, report=Reports(tmp_path), resume_from=str(tmp_path / "3"))
    later = with_phase(child, 3, strength=0.1, rate=0.8)
    train(later, dataset, options=CPU, report=Reports(tmp_path), resume_from=str(tmp_path / "3"), until=4)
    assert (tmp_path / "4").exists()


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_run_in_parts_ends_like_a_whole_one(loader_workers: int, prepared: str, tmp_path: Path) -> None:
    """It reports where it stops, makes no batch beyond, and leaves no thread or process behind."""
    dataset, options = open_dataset(prepared), dataclasses.replace(CPU, loader_workers=loader_workers)
    train(PARENT, dataset, options=CPU, report=Reports(tmp_path / "whole"))
    parts, start = Reports(tmp_path / "parts"), None
    for until in (1, 5, 6):
        metrics = train(PARENT, dataset, options=options, report=parts, resume_from=start, until=until)
        assert metrics["step"] == until
        assert not any(thread.name.startswith("next-batch") for thread in threading.enumerate())
        assert not multiprocessing.active_children()
        start = str(tmp_path / "parts" / str(until))
    assert [metrics["step"] for metrics in parts.metrics] == [1, 4, 5, 6]
    assert parts.metrics[0]["learning_rate"] == learning_rate_at(0, PARENT)
    _assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("until", [-1, 0, 7])
def test_a_run_cannot_stop_outside_its_steps(until: int, prepared: str) -> None:
    with pytest.raises(InputError, match=f"until is {until}; want a step from 1 to 6"):
        train(PARENT, open_dataset(prepared), options=CPU, report=lambda *_: None, until=until)


def test_the_time_left_is_that_of_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for until in (40, 100):
        meter = Meter(TrainConfig(steps=100), first_step=0, say=told.append, until=until)
        now[0] += 40.0
        meter.count(19, loss=1.0, norm=1.0)
        meter.tell(learning_rate=1e-3)
    assert told[0].startswith("step 20/100")
    assert told[0].endswith(", 40 s left to step 40")
    assert told[1].endswith(", 3 min left")
