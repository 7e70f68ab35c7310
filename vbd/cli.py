"""What the jobs share: flags, one-line errors, exit codes, and the connection to Ray."""

import contextlib
import functools
import io
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from vbd import ray_noise, summary, versions
from vbd.errors import InputError, input_error_within, interruption_within

# 0 is done, and 1 a fault of ours with its traceback, or a defect that jobs/evaluate.py was to look for. docs/jobs.md has
# them all for users.
EXIT_FAULT = 1
EXIT_MISTAKE = 2  # something the user can mend
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


# SIGTERM of somebody, or of a cluster that takes the machine back. Not an exception of its own: what a handler raises
# arrives as a plain KeyboardInterrupt where Ray has caught it in between.
_terminated_by: list[int] = []


def _terminate(signum: int, frame: object) -> None:
    _terminated_by.append(signum)
    raise KeyboardInterrupt


# Read by Ray when it starts, here and in every worker.
_RAY_SETTINGS = {
    # Tune's snapshots carry its logs to the run folder and nothing else that counts: as often as Tune thinks fit.
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_SCHEDULER_EVENTS": "0",  # the autoscaler's, one a second for each trial that waits; `vbd.placement` tells it in brief
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # unreadable in job logs; our own lines say more
    # Relative paths keep meaning what they mean to the user.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


# They announce, at WARNING or INFO, what our own lines say or what is meant to be so.
_NOISY_LOGGERS = ("ray._private.authentication.authentication_token_setup",)


def main(job: Callable[..., Any]) -> None:
    """Runs a job from the command line: its keyword arguments are the flags, its docstring the help.

    Exits with 0 when it is done, with what the job returns when that is a number, with 2 and one line for an InputError. The
    last line of the output is JSON (`vbd.summary`), however the job ends.
    """
    signal.signal(signal.SIGTERM, _terminate)
    began = time.monotonic()
    summary.forget()

    def end(code: int, reason: str = "") -> None:
        ray_noise.stop_filter()  # what was written to standard error comes before the last line
        seconds = time.monotonic() - began
        print(summary.line_of(job.__name__.strip("_"), exit_code=code, seconds=seconds, reason=reason), flush=True)

    try:
        code = _parsed(job)()
        code = code if isinstance(code, int) else 0
        end(code)
    except InputError as error:
        code = _mistake(error, end)
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails once more as it ends
        code = EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        code = _interrupted(end)
    except Exception as error:
        if isinstance(interruption_within(error), KeyboardInterrupt):
            sys.exit(_interrupted(end))
        # Ray wraps what a worker raised; a user's mistake found there is still a user's mistake.
        cause = input_error_within(error)
        if cause is None:
            end(EXIT_FAULT, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            raise
        code = _mistake(cause, end)
    sys.exit(code)


def _parsed(job: Callable[..., Any]) -> Callable[[], Any]:
    """The job with the flags of the command line; a wrong flag raises InputError, and `--help` ends the process."""
    import tyro

    @functools.wraps(job)
    def bound(*values: Any, **flags: Any) -> Callable[[], Any]:
        if isinstance(flags.get("output"), str):
            summary.tell(output=flags["output"])
        return functools.partial(job, *values, **flags)

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(bound, description=(job.__doc__ or "").split("Args:")[0].strip())
    except SystemExit as stop:
        if not stop.code:
            raise
        # A box of several lines under a title; its rules part the sentences.
        lines = [line.strip("│╭╮╰╯ ") for line in told.getvalue().splitlines()]
        _, *sentences = (" ".join(part.split()).rstrip(".") for part in re.split("─{4,}", " ".join(lines)))
        raise InputError("; ".join(sentence for sentence in sentences if sentence)) from None


def _interrupted(end: Callable[[int, str], None]) -> int:
    code, reason = (EXIT_TERMINATED, "interrupted by SIGTERM") if _terminated_by else (EXIT_INTERRUPTED, "interrupted")
    print("interrupted; the same command goes on from here", file=sys.stderr)
    end(code, reason)
    return code


def _mistake(error: InputError, end: Callable[[int, str], None]) -> int:
    print(f"error: {error}", file=sys.stderr)
    end(EXIT_MISTAKE, str(error))
    return EXIT_MISTAKE


def connect() -> None:
    """Connects to the Ray cluster this job runs on, or starts one on this machine, and says which.

    `ray job submit` passes the address through the environment, so `ray.init` gets no address here. A cluster of our own
    serves its dashboard on localhost only. Raises InputError when the cluster does not answer, or has another Ray or Python.
    """
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ray.is_initialized():
        ray_noise.start_filter()
        try:
            ray.init(logging_level=logging.WARNING, log_to_driver=True, runtime_env=_worker_environment())
        except Exception as error:
            if mistake := _told_in_a_line(error):
                raise mistake from error
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)  # Ray has put its own in the place of ours, which dumps a stack
    resources = ray.cluster_resources()
    dashboard = ray.get_runtime_context().worker.node.address_info.get("webui_url") or ""
    print(
        f"ray {ray.__version__}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs on {len(ray.nodes())} node(s)"
        + (f"; dashboard http://{dashboard}" if dashboard else ""),
        flush=True,
    )


def _worker_environment() -> dict[str, Any]:
    settings = {name: os.environ[name] for name in _RAY_SETTINGS}
    settings[versions.VARIABLE] = json.dumps(versions.installed())
    return {"env_vars": settings, "worker_process_setup_hook": ray_noise.worker_setup()}


def _told_in_a_line(error: Exception) -> InputError | None:
    """What keeps this driver from its cluster as something to mend, where it is."""
    address = os.environ.get("RAY_ADDRESS", "")
    text = " ".join(str(error).split())
    found = re.search(r"Version mismatch: .*Ray: (\S+) Python: (\S+) .*Ray: (\S+) Python: (\S+)", text)
    if found:
        theirs, their_python, ours, our_python = found.groups()
        return InputError(
            f"the cluster runs Ray {theirs} on Python {their_python}, and this job Ray {ours} on Python {our_python}; install on "
            "both what constraints.txt says"
        )
    if isinstance(error, ConnectionError):
        return InputError(
            f"RAY_ADDRESS {address}: no Ray answers there; start the cluster, or unset it for one of this machine"
        )
    if "timed out during startup" in text:
        return InputError(
            "Ray did not start within half a minute: this machine is too busy; run again when it is less so"
        )
    return None
