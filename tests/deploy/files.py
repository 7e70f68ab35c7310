"""The files by which clusters are started, as those who start them read them."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
CLOUDS = {"aws": "cluster.yaml", "gcp": "deploy/gcp.yaml"}


def cluster(cloud: str) -> dict[str, Any]:
    """What `ray up` reads."""
    return yaml.safe_load((ROOT / CLOUDS[cloud]).read_text())


def pretend(folder: Path, version: tuple[int, int]) -> Path:
    """A program that runs a Python file with its arguments as that version of Python would."""
    program = folder / "pretend.py"
    program.write_text(
        f"import runpy, sys\nsys.version_info = {(*version, 0)}\nsys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return program


def documents(name: str) -> list[dict[str, Any]]:
    """What `kubectl apply` reads."""
    return list(yaml.safe_load_all((ROOT / "deploy" / "kuberay" / name).read_text()))


def pinned(package: str) -> str:
    """The version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.removeprefix(f"{package}==") for line in lines if line.startswith(f"{package}=="))


def images(node: Any) -> list[str]:
    """Every container image that is named anywhere in a document."""
    if isinstance(node, list):
        return [image for each in node for image in images(each)]
    if not isinstance(node, dict):
        return []
    named = [value for key, value in node.items() if key in ("image", "head_image", "worker_image")]
    return named + [image for value in node.values() for image in images(value)]
