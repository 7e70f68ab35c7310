"""docs/cluster.md, "On one machine": its commands in a shell, in a home of their own and at ports of their own."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import RAY, ROOT, end_processes, free_port, pids_with

pytestmark = pytest.mark.slow

TEXT = (ROOT / "docs" / "cluster.md").read_text().split("## On one machine")[1].split("\n## ")[0]
# Run by a job that was submitted: what it is connected to, and what it says of it.
JOB = "python -c 'from vbd.cli import connect; connect()'"


def _script(dashboard: int) -> str:
    """The documented commands with other ports and a shorter job, and without the end: `ray stop` would end every Ray here."""
    (block,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    ports = (
        f"--port={free_port()} --dashboard-port={dashboard} --ray-client-server-port={free_port()} "
        f"--dashboard-agent-listen-port={free_port()} --min-worker-port=0 --max-worker-port=0 --num-cpus=1 "
        "--object-store-memory=100000000"
    )
    for command, other in (
        ("ray start --head", f"ray start --head {ports}"),
        ("http://127.0.0.1:8265", f"http://127.0.0.1:{dashboard}"),
        ('python jobs/tune.py smoke --storage "$PWD/runs"', JOB),
        ("ray stop\n", ""),
    ):
        assert command in block
        block = block.replace(command, other)
    return block


@pytest.fixture(scope="module")
def ran() -> Iterator[tuple[dict[str, str], str]]:
    """The environment of the shell, and what the commands printed; Ray still runs."""
    folder = tempfile.mkdtemp(prefix="vbd", dir="/tmp")
    mark = {"VBD_CLUSTER": folder}
    left_out = ("RAY_AUTH_MODE", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | {
        **mark,
        "HOME": folder,
        "RAY_TMPDIR": folder,
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
        "SPT_NOENV": "1",
    }
    try:
        script = "set -e\n" + _script(free_port())
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield environment, done.stdout
    finally:
        end_processes(**mark)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_documented_job_runs_without_a_warning(ran: tuple[dict[str, str], str]) -> None:
    _, printed = ran
    assert "ray 2.60.0: 1 CPUs, 0 GPUs on 1 node(s)" in printed
    assert "warning: " not in printed


def test_only_the_user_reads_the_token(ran: tuple[dict[str, str], str]) -> None:
    environment, _ = ran
    assert (Path(environment["HOME"]) / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_every_port_listens_on_localhost_only(ran: tuple[dict[str, str], str]) -> None:
    import psutil

    environment, _ = ran
    listening = {
        (psutil.Process(pid).name(), each.laddr.ip)
        for pid in pids_with(VBD_CLUSTER=environment["VBD_CLUSTER"])
        for each in psutil.Process(pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


# Each line is what a job says that is run directly, with one of the wrong ways to send a token.
_TRIES = """
import os
from ray._raylet import AuthenticationTokenLoader
from vbd.cluster import connect as connection
for given in ({"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, {"RAY_AUTH_MODE": "disabled"}, {}):
    os.environ.update(given)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        print(connection._asks_for_no_token(connection._address()))
    except connection.InputError as error:
        print(error)
    os.environ["RAY_AUTH_MODE"] = "token"
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
"""


def test_a_wrong_token_and_a_missing_one_are_named(ran: tuple[dict[str, str], str]) -> None:
    environment, _ = ran
    mine = environment | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _TRIES], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    at = r"the Ray of this machine at 127\.0\.0\.1:\d+: the cluster "
    wanted = (
        at + "refuses the token of RAY_AUTH_TOKEN; put there the token that the cluster was started with",
        at
        + "asks for a token, and /nowhere holds none; write the cluster's token there, readable by you alone, and export "
        "RAY_AUTH_MODE=token",
        at + "asks for a token, and RAY_AUTH_MODE is disabled; export RAY_AUTH_MODE=token",
        "False",
    )
    for pattern, line in zip(wanted, done.stdout.splitlines(), strict=True):
        assert re.fullmatch(pattern, line), line
