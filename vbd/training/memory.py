"""What happens when memory runs out, and how much was used."""

import contextlib
import gc
import resource
from pathlib import Path

import torch

# What torch raises where it does not say OutOfMemoryError: its CPU allocator, and NVIDIA's libraries.
_SIGNS = (
    "can't allocate memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


# Linux tells here how much memory this process has held at most, and counts anew when it is told to.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryShort(Exception):  # noqa: N818  # not a fault: the run is to be started again
    """One of several workers ran out of memory: all are to start again with at most `micro_batch` images at a time."""

    def __init__(self, *, micro_batch: int) -> None:
        super().__init__(f"out of memory; start again with {micro_batch} image(s) at a time on each worker")
        self.micro_batch = micro_batch


def is_memory_error(error: RuntimeError) -> bool:
    """Whether an error says that there is no memory left, in any of its spellings."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def free_memory() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def forget_peak() -> None:
    """Counts the peak anew from here: a process may train one run after the other."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # see proc(5)


def peak_memory_mb(device: torch.device) -> float:
    """The most that tensors on a GPU have taken, or all of this process on a CPU, since it started or `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
