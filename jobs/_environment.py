"""Imported first by every job: reports in one line that the interpreter lacks vbd's packages. Standard library only."""

import sys
from importlib.util import find_spec
from pathlib import Path

missing = [] if find_spec("vbd") else ["vbd"]
if missing:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # enough of it to say so

from vbd.interpreter import check  # noqa: E402

check(*missing)
