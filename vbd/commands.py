"""Commands that a user can paste into a shell. Standard library only, and readable for old versions of Python."""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# In the environment of a driver that `ray job submit` started, and of no other.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def is_submitted() -> bool:
    """Whether `ray job submit` started this process."""
    return _SUBMITTED in os.environ


def job_command(job: str, *arguments: str, interpreter: str = "") -> str:
    """The command that runs `jobs/<job>.py`, quoted for a shell: `.venv/bin/python jobs/report.py --run 'my runs'`.

    It names the running interpreter unless another one is given. Paths are relative where they are inside the working
    directory. A submitted job runs in a copy of the project, so it names the paths in the user's own project instead.
    """
    script = ROOT / "jobs" / f"{job}.py"
    if is_submitted() or not script.exists():
        words = [".venv/bin/python", f"jobs/{script.name}"]
    else:
        words = [shown(interpreter or sys.executable), shown(script)]
    return shlex.join([*words, *arguments])


def submit_command(dashboard: str) -> str:
    """How a job is submitted to the cluster whose dashboard has this address."""
    return f"ray job submit --address {shlex.quote(dashboard)} --working-dir . -- python jobs/..."


def shown(path: "str | Path") -> str:
    """An absolute path for the user's shell: relative where it is inside the working directory."""
    try:
        relative = Path(path).relative_to(Path.cwd())
    except ValueError:
        return str(path)
    return str(relative) if len(relative.parts) > 1 else f"./{relative}"  # a shell looks bare names up in PATH
