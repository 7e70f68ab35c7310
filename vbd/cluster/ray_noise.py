"""Lines of Ray's that look like failures and are none: their causes are removed where possible, the rest is left out.

Run as a script, this file is the filter: it copies standard input to standard error without those lines. It is a process of
its own because what a thread has read and not yet written is lost when its process crashes, which is when it is needed most.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable

# Ray's own actors, which it restarts with arguments that the driver holds for as long as they are needed. As Ray's C++ code
# prints it in the process that starts the actor, and as the driver prints it for a worker: after the worker's name, and
# perhaps with how often the line was repeated.
HARMLESS = re.compile(
    rb"(?:\S*\(\w+ pid=[^)]*\)\S* )?\S*\[[^\]]* E \d+ \d+\]\S* core_worker\.cc:\d+: "
    rb"Actor with class name: '(?:MapWorker\(.*\)|_MapWorker|PreemptionWatcher)' and ID: '[0-9a-f]+' has constructor "
    rb"arguments in the object store and max_restarts > 0\. If the arguments in the object store go out of scope or are lost, "
    rb"the actor restart will fail\. See \S+ for more details\..*"
)
_PAUSE_SECONDS = 0.05  # after which an unfinished line, such as a progress bar, is passed on
_END_SECONDS = 5.0


def worker_setup(then: str = "") -> Callable[[], None]:
    """A function for Ray's `worker_process_setup_hook`, which runs in each worker before anything else.

    It is pickled by value, so that a node without vbd still reports what it lacks by itself. `then`: the user's own hook as
    "module.function", which it calls last.
    """

    def set_up() -> None:
        import os
        import warnings

        import ray

        # Ray's own actors (PlacementGroupCleaner, TrainStateActor) ask the dashboard about their cluster and find it by this
        # variable. Without it they look at all of the machine's clusters, and die where there is more than one.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        # Ray Train sets it, not its user.
        warnings.filterwarnings("ignore", message=r"`ExecutionOptions\.exclude_resources` is deprecated")
        if then:
            from ray._common.utils import load_class

            load_class(then)()

    return set_up


class _Filter:
    """Stands between this process's standard error and where that led before."""

    def __init__(self) -> None:
        self._before = os.dup(2)
        reader, writer = os.pipe()
        command = [sys.executable, "-I", "-S", __file__]
        # In a session of its own: Ctrl-C is for the job, whose last lines are still to come.
        self._process = subprocess.Popen(command, stdin=reader, start_new_session=True)
        os.close(reader)
        os.dup2(writer, 2)
        os.close(writer)

    def close(self) -> None:
        """Standard error leads where it led before, and all that was written meanwhile has arrived there."""
        sys.stderr.flush()
        os.dup2(self._before, 2)
        os.close(self._before)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_SECONDS)  # only a process that inherited the pipe can hold it open


_filters: list[_Filter] = []


def start_filter() -> None:
    """From now on harmless lines on the standard error of this process are left out; `stop_filter` ends that."""
    if not _filters and sys.stderr is not None:  # None: started with standard error closed
        _filters.append(_Filter())


def stop_filter() -> None:
    """Returns when everything written to standard error is where it belongs; does nothing when there is no filter."""
    while _filters:
        _filters.pop().close()


def _copy(source: int, target: int) -> None:
    """Copies until the end of the source; a line is passed on when it is whole, or when nothing follows for a while."""
    rest = b""
    with open(target, "wb", closefd=False) as output:
        while True:
            may_pass = rest and not HARMLESS.fullmatch(rest)
            if may_pass and not select.select([source], [], [], _PAUSE_SECONDS)[0]:
                output.write(rest)
                output.flush()
                rest = b""
            chunk = os.read(source, 1 << 16)
            *lines, rest = (rest + chunk).split(b"\n")
            output.writelines(line + b"\n" for line in lines if not HARMLESS.fullmatch(line))
            output.flush()
            if not chunk:
                break
        if not HARMLESS.fullmatch(rest):
            output.write(rest)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # `ray job stop` signals a job's children too; this one ends with the job
    _copy(0, 2)
