"""Prints in one line why this Python cannot run vbd; prints nothing when it can.

    python3 deploy/check_python.py python3 venv ensurepip

The arguments are what the user calls this interpreter, and the modules of the standard library that it must have. Old
interpreters must be able to run this file: no syntax and no module younger than Python 3.6.
"""

import importlib.util
import re
import sys
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def complaint(name: str, version: "tuple[int, int]", missing: "list[str]", project: str) -> str:
    """Returns why the interpreter is not usable, "" if it is; `project` is the text of pyproject.toml."""
    bounds = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', project, re.MULTILINE)
    assert bounds is not None, "pyproject.toml: requires-python is not of the form >=3.x,<3.y"
    first, beyond = int(bounds[1]), int(bounds[2])
    this = f"{version[0]}.{version[1]}"
    if not (3, first) <= version < (3, beyond):
        return f"{name} is Python {this}, and vbd needs Python 3.{first} to 3.{beyond - 1}"
    if missing:  # Debian and Ubuntu put venv and ensurepip into a package of their own
        return f"{name} has no module {missing[0]}; install it (Debian, Ubuntu: apt-get install python{this}-venv)"
    return ""


if __name__ == "__main__":
    name, *modules = sys.argv[1:]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    print(complaint(name, sys.version_info[:2], missing, _PROJECT.read_text(encoding="utf-8")), end="")
