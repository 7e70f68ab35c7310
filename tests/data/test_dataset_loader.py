"""Batches made ahead of the steps, by a thread or by processes, and what happens when one of these is lost."""

import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.test_dataset import CONFIG
from vbd.data.batches import loader as dataset_loader
from vbd.data.batches.loader import made_by_thread
from vbd.data.batches.make import training_batches
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.records import Batch


def _batch(step: int) -> Batch:
    return Batch([str(step)], torch.full((1, 3, 2, 2), float(step)), [])


def test_the_next_batches_are_made_while_a_step_runs() -> None:
    made = []
    third = threading.Event()

    def make(step: int) -> Batch:
        assert threading.current_thread() is not threading.main_thread()
        made.append(step)
        if step == 7:
            third.set()
        return _batch(step)

    batches = made_by_thread(make, range(5, 50))
    assert next(batches).image_ids == ["5"]
    assert third.wait(10)  # without asking for it
    assert [next(batches).image_ids for _ in range(3)] == [["6"], ["7"], ["8"]]
    batches.close()
    assert made == list(range(5, 5 + len(made)))
    assert len(made) <= 7  # a few ahead, not all
    assert not any(thread.name.startswith("next-batch") for thread in threading.enumerate())


def test_a_batch_that_cannot_be_made_is_told_at_its_step() -> None:
    def make(step: int) -> Batch:
        if step == 2:
            raise InputError("image of step 2")
        return _batch(step)

    batches = made_by_thread(make, range(9))
    assert [next(batches).image_ids for _ in range(2)] == [["0"], ["1"]]
    with pytest.raises(InputError, match="image of step 2"):
        next(batches)


def test_no_steps_give_no_batches(prepared: str) -> None:
    for loader_workers in (0, 1):
        batches = training_batches(open_dataset(prepared), CONFIG, first_step=8, loader_workers=loader_workers)
        assert list(batches) == []


@pytest.fixture
def endless(prepared: str) -> Iterator[Iterator[Batch]]:
    """More batches than anybody waits for, made by one process."""
    batches = training_batches(open_dataset(prepared), replace(CONFIG, steps=10**6), first_step=0, loader_workers=1)
    yield batches
    batches.close()


def test_a_process_that_is_killed_is_told(endless: Iterator[Batch]) -> None:
    next(endless)
    (process,) = multiprocessing.active_children()
    process.kill()
    with pytest.raises(InputError, match="ended by SIGKILL; it may have been short of memory") as caught:
        for _ in endless:
            pass
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_closing_the_iterator_ends_the_processes(endless: Iterator[Batch]) -> None:
    next(endless)
    assert len(multiprocessing.active_children()) == 1
    endless.close()
    assert not multiprocessing.active_children()


def test_the_global_random_numbers_are_left_alone(endless: Iterator[Batch]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    next(endless)
    assert torch.rand(1) == expected


def test_a_full_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)\nat MapAllocator.cpp")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    fault = dataset_loader._Steps(_batch)[4]
    assert isinstance(fault, dataset_loader._Fault)
    assert "No space left on device (28)): make /dev/shm larger" in fault.message
    assert "\n" not in fault.message


def test_channels_that_share_memory_are_written_out_before_they_are_pinned() -> None:
    grey = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1)
    written = dataset_loader._written_out(grey)
    assert written.is_contiguous()
    assert torch.equal(written, grey)
    composed = torch.rand(2, 4, 4, 3).permute(0, 3, 1, 2)
    assert dataset_loader._written_out(composed) is composed


def test_a_batch_crosses_to_another_process_with_its_numbers() -> None:
    targets = [
        {"boxes": torch.rand(2, 4), "labels": torch.tensor([3, 4]), "weights": torch.rand(2)},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    batch = Batch(["a", "b"], torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1), targets)  # type: ignore[arg-type]
    packed = dataset_loader._packed(batch)
    assert packed.images.is_shared()
    assert all(isinstance(value, np.ndarray) for target in packed.targets for value in target.values())
    again = packed.unpacked()
    assert again.image_ids == batch.image_ids
    assert torch.equal(again.images, batch.images)
    for one, other in zip(again.targets, targets, strict=True):
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in other)
