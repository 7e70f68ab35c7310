"""Whether the running interpreter can run the jobs. Standard library only, and readable for old versions of Python."""

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from vbd.commands import ROOT, is_submitted, job_command

# The first and the last supported version, as in pyproject.toml.
PYTHONS = ((3, 11), (3, 14))
# What the jobs import, now or later: the modules of the dependencies in pyproject.toml.
MODULES = (
    *("PIL", "cv2", "effdet", "hotcoco", "libjpeg", "numba", "numpy", "openjpeg", "optuna"),
    *("pandas", "plotly", "pyarrow", "pycocotools", "pydantic", "pydicom", "pylibjpeg", "ray", "rich", "rle"),
    *("sklearn", "timm", "torch", "torchvision", "tyro", "yaml", "yolox"),
)
_EXIT_MISTAKE = 2
_NAMED = 3  # missing modules in the message


def check(*missing: str) -> None:
    """Ends the process with one line and exit code 2 if this interpreter cannot run the job in `sys.argv`.

    `missing` are modules that the caller did not find.
    """
    missing = (*missing, *(name for name in MODULES if find_spec(name) is None))
    supported = " to ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    is_supported = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    if is_supported and not missing:
        return
    executable = shlex.quote(sys.executable)
    if not is_supported:
        problem = f"vbd needs Python {supported}, and {executable} is {sys.version_info[0]}.{sys.version_info[1]}"
    else:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        named = ", ".join(missing[:_NAMED]) + more
        problem = f"vbd's packages are not installed for {executable} (missing: {named})"
    job = Path(sys.argv[0]).stem
    message = f"{problem}; {_advice(job, sys.argv[1:], is_supported=is_supported)}"
    print(f"error: {message}", file=sys.stderr)
    print(json.dumps({"exit": _EXIT_MISTAKE, "job": job, "reason": message, "seconds": 0.0}, sort_keys=True))
    sys.exit(_EXIT_MISTAKE)


def _advice(job: str, arguments: "list[str]", *, is_supported: bool) -> str:
    """What to run instead: the project's own environment, installed first where it is missing or incomplete."""
    if is_submitted():
        return "install the packages on every node with deploy/install.sh, and start Ray with that Python first on PATH"
    environment = ROOT / ".venv"
    use = "use: " + job_command(job, *arguments, interpreter=str(environment / "bin" / "python"))
    is_own = Path(sys.prefix) == environment
    if (environment / "installed").exists() and not is_own:
        return use
    make = ["make", *(["--always-make"] if is_own else []), *([] if is_supported else ["PYTHON=python3.12"])]
    make += [] if Path.cwd() == ROOT else ["-C", str(ROOT)]
    return f"run once: {shlex.join([*make, '.venv/installed'])}; then {use}"
