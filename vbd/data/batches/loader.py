"""Batches ahead of the step that needs them: made by a thread beside the training thread, or by torch's DataLoader.

Both ask one function for the batch of a step and hand the batches on in the order of the steps, so that how a batch is
made never changes what is in it.

Processes come from a fork server, not from a fork: a fork of a process in which Ray's, gRPC's or CUDA's threads run
copies their locks without the threads, and hangs. The server loads torch and OpenCV once and its forks share them;
spawned processes would each load them for themselves.
"""

import functools
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vbd.errors import InputError
from vbd.records import Batch, Target

MakeBatch = Callable[[int], Batch]
# Batches that wait for the training thread: of the one thread, and of each process.
_THREAD_AHEAD, _PROCESS_AHEAD = 2, 4
# How long the end of a process may take to be seen after its connection broke.
_DEATH_S = 5.0


def made_by_thread(make_batch: MakeBatch, steps: range) -> Generator[Batch, None, None]:
    """The batches of some steps, the next ones made by one thread while a step runs: decoding frees the interpreter."""
    make = functools.partial(_make_and_pin, make_batch) if torch.cuda.is_available() else make_batch
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(1, "next-batch")
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > _THREAD_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make_and_pin(make_batch: MakeBatch, step: int) -> Batch:
    batch = make_batch(step)
    return replace(batch, images=_pin(batch.images))


def _pin(images: torch.Tensor) -> torch.Tensor:
    """In memory that a GPU reads by itself. Equal channels that share memory are written out: a copy would have to, later."""
    return _written_out(images).pin_memory()


def _written_out(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous() if 0 in images.stride() else images


def made_by_processes(make_batch: MakeBatch, steps: range, *, processes: int) -> Generator[Batch, None, None]:
    """The batches of some steps, made by processes that live as long as the iterator.

    Raises InputError for what a process says is wrong with the data, and when a process dies.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vbd.data.batches.make"])
    others = multiprocessing.active_children()
    loader: DataLoader[Any] = DataLoader(
        _Steps(make_batch),
        sampler=steps,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=processes,
        prefetch_factor=_PROCESS_AHEAD,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_process,
        multiprocessing_context=context,
        generator=torch.Generator(),  # otherwise it draws from the global one
    )
    batches = iter(loader)
    ours = [process for process in multiprocessing.active_children() if process not in others]
    try:
        for _ in steps:
            item = _next_item(batches, ours)
            if isinstance(item, _Fault):
                raise InputError(item.message)
            yield item.unpacked()
    finally:
        # The last reference, also where an exception keeps this frame: DataLoader ends its processes when it is freed.
        del batches


def _next_item(batches: Iterator[Any], processes: list[BaseProcess]) -> Any:
    """The next batch or fault; torch notices within seconds that a process is gone."""
    try:
        return next(batches)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
            raise
        return _Fault(_why_died(processes))
    except (ConnectionError, EOFError):  # it died while it handed over a batch
        if not wait([process.sentinel for process in processes], timeout=_DEATH_S):
            raise
        return _Fault(_why_died(processes))


def _start_process(number: int) -> None:
    cv2.setNumThreads(0)  # the cores belong to the other processes
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process, which ends this one


def _as_it_is(item: Any) -> Any:
    return item


def _why_died(processes: list[BaseProcess]) -> str:
    code = next((process.exitcode for process in processes if process.exitcode), 0)
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return (
        f"a process that makes batches ended {how}; it may have been short of memory (SIGKILL) or of room in /dev/shm "
        "(SIGBUS): use fewer loader workers or a smaller batch"
    )


@dataclass(frozen=True)
class _Fault:
    """What a user can mend travels as a result: an exception would arrive as a traceback in a message."""

    message: str


@dataclass(frozen=True)
class _Packed:
    """A batch on its way between processes: the pixels in shared memory, the few numbers of the boxes in the message.

    A tensor of its own for each box list would take a file handle for each.
    """

    image_ids: list[str]
    images: torch.Tensor
    targets: list[dict[str, NDArray[Any]]]

    def pin_memory(self) -> "_Packed":
        """Called by DataLoader, in a thread of the training process."""
        return replace(self, images=_pin(self.images))

    def unpacked(self) -> Batch:
        targets = [{name: torch.from_numpy(value) for name, value in target.items()} for target in self.targets]
        return Batch(self.image_ids, self.images, [Target(**target) for target in targets])  # type: ignore[typeddict-item]


class _Steps(Dataset[_Packed | _Fault]):
    """Step -> batch, in a process of the loader."""

    def __init__(self, make_batch: MakeBatch):
        self._make_batch = make_batch

    def __getitem__(self, step: int) -> _Packed | _Fault:
        try:
            return _packed(self._make_batch(step))
        except InputError as error:
            return _Fault(str(error))


def _packed(batch: Batch) -> _Packed:
    try:
        # Here and not by the queue: its thread would only print that there is no room, and the training process wait.
        images = batch.images.share_memory_()
    except RuntimeError as error:
        raise InputError(
            f"no room for a batch in shared memory ({str(error).splitlines()[0]}): make /dev/shm larger, or use fewer "
            "loader workers or a smaller batch"
        ) from error
    targets = [{name: np.asarray(value) for name, value in target.items()} for target in batch.targets]
    return _Packed(batch.image_ids, images, targets)
