"""Errors that return: the same error at the same step is no accident, and another attempt would end there too.

Training is deterministic from step to step. An attempt whose process died, or that lost its store, its network or its memory,
is worth repeating.
"""

import contextlib
from collections.abc import Callable, Iterator

from vbd import storage
from vbd.errors import InputError, interruption_within

_AT_STEP = "at training step "
# Libraries of torch.distributed that raise a plain RuntimeError when another worker is gone.
_COLLECTIVES = ("gloo", "nccl")


@contextlib.contextmanager
def step_noted(step: Callable[[], int]) -> Iterator[None]:
    """Adds the step to an exception that is raised inside, as a note."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{_AT_STEP}{step()}")
        raise


def is_repeatable(error: BaseException) -> bool:
    """Whether an unexpected error comes from the training itself, and not from the store, the network, memory or Ray."""
    if isinstance(error, InputError | OSError | MemoryError) or type(error).__module__.split(".")[0] == "ray":
        return False
    if interruption_within(error):  # a library wraps the exception by which Ray ends a process
        return False
    is_collective = "Dist" in type(error).__name__ or any(name in str(error).lower() for name in _COLLECTIVES)
    return isinstance(error, Exception) and not is_collective


def in_brief(error: BaseException) -> str:
    """Type and first line."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def returned(folder: str, error: Exception, *, rank: int = 0) -> str:
    """Why no further attempt at a run can help: `error` ended an earlier one at the same step. Else remembers it, returns "".

    Each rank of a run remembers its own errors, in the run's folder.
    """
    if not is_repeatable(error):
        return ""
    steps = [note.removeprefix(_AT_STEP) for note in getattr(error, "__notes__", ()) if note.startswith(_AT_STEP)]
    place = f"at step {steps[0]}" if steps else "before the first step"
    found = {"error": in_brief(error), "place": place}
    location = storage.join(folder, f"error-{rank}.json")
    if storage.exists(location) and storage.read_object(location) == found:
        return f"{found['error']} ({place}, twice)"
    storage.write_json(location, found)
    return ""


def forget(folder: str) -> None:
    """Forgets the errors of earlier attempts: their cause may have been removed since."""
    for name in storage.list_names(folder):
        if name.startswith("error-"):
            storage.delete_file(storage.join(folder, name))
