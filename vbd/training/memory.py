"""What happens when memory runs out, and how much was used."""

import gc
import resource

import torch

# What torch raises where it does not say OutOfMemoryError: its CPU allocator, and NVIDIA's libraries.
_SIGNS = (
    "can't allocate memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


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


def peak_memory_mb(device: torch.device) -> float:
    """The most that tensors on a GPU have taken, or all of this process on a CPU, since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
