"""Whether a worker's node has the libraries that the driver has: other versions give other results, or none."""

import functools
import importlib.metadata
import json
import os
import socket
from collections.abc import Mapping

import vbd
from vbd.errors import InputError

# What decides about pixels, weights and scores, and what travels between processes.
_PACKAGES = ("torch", "torchvision", "numpy", "pyarrow", "timm", "effdet", "pixeltable-yolox")
# In the environment of every worker: the driver's versions.
VARIABLE = "VBD_DRIVER_VERSIONS"


class VersionsError(InputError):
    """A node has other libraries than the driver."""


def installed() -> dict[str, str]:
    """The version of each package here, "" where it is missing; nothing is imported."""
    found = {"vbd": vbd.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


@functools.cache
def check_versions() -> None:
    """Raises VersionsError when this node has another version of a package than the driver.

    For the entry points of workers; a process does it once.
    """
    if told := os.environ.get(VARIABLE):
        compare(json.loads(told), installed(), node=socket.gethostname())


def compare(driver: Mapping[str, str], here: Mapping[str, str], *, node: str) -> None:
    """Raises VersionsError that names the first package whose version on `node` is not the driver's."""
    for name, wanted in driver.items():
        version = here.get(name, "")
        if version != wanted:
            raise VersionsError(
                f"node {node}: {name} {version or 'is missing'}, and the driver has {wanted or 'none'}; install on both what "
                "constraints.txt says"
            )
