"""What the jobs share: flags, absolute locations, one-line errors and exit codes."""

import contextlib
import functools
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_type_hints

from vbd import storage
from vbd.cluster import ray_noise
from vbd.cluster.connect import connect as connect
from vbd.config.checked import broken_rule, hints_of
from vbd.console import last_line as summary
from vbd.errors import InputError, input_error_within, interruption_within
from vbd.storage.credentials import refuse_credentials

# The type of a flag that names a file or folder. `main` passes the job an absolute path or a URI: processes of a cluster have
# other working directories than the user's shell.
_LOCATION = "location"
Location = Annotated[str, _LOCATION]

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


def main(job: Callable[..., Any]) -> None:
    """Runs a job from the command line: its keyword arguments are the flags, its docstring the help.

    Exits with 0 when it is done, with what the job returns when that is a number, with 2 and one line for an InputError. The
    last line of the output is JSON (`vbd.console.last_line`), however the job ends.
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

    for word in sys.argv[1:]:  # before anything repeats it
        refuse_credentials(word)
    hints = get_type_hints(job, include_extras=True)

    @functools.wraps(job)
    def bound(*values: Any, **flags: Any) -> Callable[[], Any]:
        flags = {name: _absolute(value) if _names_location(hints[name]) else value for name, value in flags.items()}
        if isinstance(flags.get("output"), str):
            summary.tell(output=flags["output"])
        _check_flags(job, flags)
        return functools.partial(job, *values, **flags)

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(bound, description=(job.__doc__ or "").split("Args:")[0].strip())
    except SystemExit as stop:
        if not stop.code:
            raise
        # A box of several lines under a title, coloured on a terminal and of ASCII where the output takes nothing else.
        lines = [line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[\d;]*m", "", told.getvalue()).splitlines()]
        _, *sentences = (" ".join(part.split()).rstrip(".") for part in re.split("[─-]{4,}", " ".join(lines)))
        raise InputError("; ".join(sentence for sentence in sentences if sentence)) from None


def _names_location(hint: Any) -> bool:
    """Whether values of a type are locations, or hold some: `Location`, `Location | None`, `tuple[Location, ...]`."""
    return _LOCATION in getattr(hint, "__metadata__", ()) or any(_names_location(part) for part in get_args(hint))


def _absolute(value: Any) -> Any:
    """A flag's locations made absolute; "" and None, which say that none is given, stay."""
    if isinstance(value, tuple):
        return tuple(_absolute(each) for each in value)
    return storage.absolute(value) if value else value


def _interrupted(end: Callable[[int, str], None]) -> int:
    code, reason = (EXIT_TERMINATED, "interrupted by SIGTERM") if _terminated_by else (EXIT_INTERRUPTED, "interrupted")
    print("interrupted; the same command goes on from here", file=sys.stderr)
    end(code, reason)
    return code


def _check_flags(job: Callable[..., Any], flags: Mapping[str, Any]) -> None:
    """Raises InputError for the first flag that breaks the rule beside its type, or is an empty text where its default is not."""
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value == "" and (job.__kwdefaults__ or {}).get(name) != "":
            raise InputError(f"{flag} '': want a value; leave the flag out for the default")
        if wanted := broken_rule(hints_of(job)[name], value):
            raise InputError(f"{flag} {value}: want {wanted}")


def _mistake(error: InputError, end: Callable[[int, str], None]) -> int:
    print(f"error: {error}", file=sys.stderr)
    end(EXIT_MISTAKE, str(error))
    return EXIT_MISTAKE
