"""What a job says when it cannot get a Ray, before Ray itself would wait for minutes."""

import json
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.nodes import free_port
from vbd.cluster import connect as connection
from vbd.cluster.connect import connect
from vbd.errors import InputError

FORMS = "want the head's HOST:PORT (its port is 6379 by default), auto or local"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself is never started here."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))


def _mistake(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError) as caught:
        connect()
    return str(caught.value)


def _host() -> str:
    import ray.util

    return ray.util.get_node_ip_address()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "http://10.0.0.1:8265",
            "this is the address of a dashboard; submit the job there (`ray job submit --address http://10.0.0.1:8265 "
            "--working-dir . -- python jobs/...`), or give the head's HOST:PORT, 10.0.0.1:6379 by default",
        ),
        (
            "ray://10.0.0.1:10001",
            "Ray Client is not supported; submit the job (`ray job submit --address http://10.0.0.1:8265 --working-dir . -- "
            "python jobs/...`), or run it on a node and give HOST:PORT",
        ),
        ("s3://bucket:1", f"not an address of Ray; {FORMS}"),
        ("nonsense", f"not an address of Ray; {FORMS}"),
        ("nonsense:port", f"port 'port' is not a number from 1 to 65535; {FORMS}"),
        ("10.0.0.1:65536", f"port '65536' is not a number from 1 to 65535; {FORMS}"),
        ("nobody.invalid:6379", f"no machine is called nobody.invalid; {FORMS}"),
    ],
)
def test_an_address_that_is_none_of_a_ray(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _mistake(monkeypatch, address) == f"RAY_ADDRESS {address}: {said}"


def test_a_port_at_which_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    start = (
        "no Ray answers there (Connection refused); start the cluster, or unset RAY_ADDRESS and the job starts its own"
    )
    far = f"{_host()}:{free_port()}"
    assert _mistake(monkeypatch, far) == f"RAY_ADDRESS {far}: {start}"
    near = f"127.0.0.1:{free_port()}"  # Ray takes it for the address by which other machines know this one
    seen = near.replace("127.0.0.1", _host())
    assert _mistake(monkeypatch, near) == (
        f"RAY_ADDRESS {near} ({seen}): {start}; one that listens on localhost alone needs "
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in this shell too"
    )


def test_a_server_that_is_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"{_host()}:{server.server_port}"
    said = f"something listens there, and it is no Ray (UNAVAILABLE); {FORMS}"
    assert _mistake(monkeypatch, address) == f"RAY_ADDRESS {address}: {said}"
    server.shutdown()
    server.server_close()


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("", 0)) as server:
        address = f"{_host()}:{server.getsockname()[1]}"
        said = f"something listens there, and it is no Ray (DEADLINE_EXCEEDED); {FORMS}"
        assert _mistake(monkeypatch, address) == f"RAY_ADDRESS {address}: {said}"


def test_a_server_of_another_kind_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the port of Ray Client."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    address = f"{_host()}:{server.add_insecure_port('0.0.0.0:0')}"
    server.start()
    said = f"another port of Ray listens there, or another server, and not the head; {FORMS}"
    assert _mistake(monkeypatch, address) == f"RAY_ADDRESS {address}: {said}"
    server.stop(None)


def test_a_ray_of_this_machine_that_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray start` notes its address in a file, which stays when the machine is switched off."""
    address = f"{_host()}:{free_port()}"
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert _mistake(monkeypatch, "") == (
        f"the Ray of this machine at {address}: no Ray answers there (Connection refused); it has ended without removing "
        f"{note}: remove that file, or export RAY_ADDRESS=local"
    )


def test_auto_where_no_ray_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert _mistake(monkeypatch, "auto") == (
        "RAY_ADDRESS auto: no Ray runs on this machine; start one (`ray start --head`), or unset RAY_ADDRESS and the job starts "
        "its own"
    )


@pytest.mark.parametrize(
    ("address", "is_said"),
    [("10.0.0.1:6379", True), ("[fd00::1]:6379", True), ("127.0.0.1:6379", False), ("[::1]:6379", False)],
)
def test_a_cluster_without_a_token_is_worth_a_warning_where_others_reach_it(address: str, is_said: bool) -> None:
    warning = (
        f"warning: the cluster at {address} asks for no token: whoever reaches this address can run code there; start it with "
        "RAY_AUTH_MODE=token (docs/security.md)\n"
    )
    assert connection._open_warning(address) == (warning if is_said else "")


# ------------------------------------------------------------------------------------------------- a Ray of the job's own


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path."""
    folder = Path(f"/tmp/vbd{free_port()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def full(short: Path) -> Iterator[Path]:
    """A disk of a megabyte, full."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(short)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs a disk of its own to fill")
    with pytest.raises(OSError, match="No space"):
        (short / "filling").write_bytes(bytes(2_000_000))
    yield short
    subprocess.run(["umount", str(short)], check=True)


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_full_disk(name: str, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, str(full))
    assert _mistake(monkeypatch, "local") == (
        f"{name} {full}: Ray cannot write its temporary files there (No space left on device); export RAY_TMPDIR with a folder "
        "elsewhere"
    )
    (full / "filling").unlink()
    said = "1 MB free, and Ray needs 50 MB for its temporary files; free some, or export RAY_TMPDIR with a folder elsewhere"
    assert _mistake(monkeypatch, "local") == f"{name} {full}: {said}"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (
            "/dev/null/x",
            "Ray cannot write its temporary files there (Not a directory); export RAY_TMPDIR with a folder elsewhere",
        ),
        ("ray", "Ray needs an absolute path for its temporary files; export RAY_TMPDIR with a folder"),
        (
            f"/tmp/{'x' * 31}",
            "too long for the sockets that Ray makes below it (108 bytes, at most 107); export RAY_TMPDIR with a folder of at "
            "most 35 bytes",
        ),
    ],
    ids=["not a folder", "relative", "too long"],
)
def test_a_temporary_folder_that_ray_cannot_use(folder: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    assert _mistake(monkeypatch, "local") == f"RAY_TMPDIR {folder}: {said}"


def test_a_home_that_cannot_be_written(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert _mistake(monkeypatch, "local") == (
        "/dev/null/.ray/auth_token: Ray cannot keep its token there (Not a directory); set HOME to a folder that can be written, "
        "or set RAY_AUTH_TOKEN to a secret of your own"
    )


def _token_of_a_start(home: Path, monkeypatch: pytest.MonkeyPatch, *, mode: str | None = None) -> Path:
    """Where a job keeps its token that has come as far as starting a Ray of its own."""
    import ray

    def start(**_: object) -> None:
        raise RuntimeError("started")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for name, value in (
        ("RAY_TMPDIR", str(home)),
        ("HOME", str(home)),
        ("RAY_ADDRESS", "local"),
        ("RAY_AUTH_MODE", mode),
    ):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="started"):
        connect()
    return home / ".ray" / "auth_token"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_token_of_a_job_is_readable_by_its_user_alone(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = _token_of_a_start(short, monkeypatch)
    first = token.read_text()
    assert (_mode(token), len(first)) == (0o600, 64)
    token.chmod(0o644)  # as Ray makes it
    assert _token_of_a_start(short, monkeypatch) == token
    assert (_mode(token), token.read_text()) == (0o600, first)
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_job_makes_no_token_that_it_does_not_need(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _token_of_a_start(short, monkeypatch, mode="disabled").exists()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a secret")
    assert not _token_of_a_start(short, monkeypatch).exists()


def test_what_a_submitted_job_sets_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in connection._RAY_SETTINGS:
        monkeypatch.setenv(name, "1")
    all_of_them = {*connection._RAY_SETTINGS, "VBD_DRIVER_VERSIONS"}
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert set(connection._worker_settings()) == all_of_them
    for runtime_env, left_out in (
        ({"env_vars": {"RAY_SCHEDULER_EVENTS": "1", "MINE": "2"}}, {"RAY_SCHEDULER_EVENTS"}),
        ({"working_dir": "gcs://x"}, set()),
        (None, set()),
    ):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env, "metadata": {}}))
        assert set(connection._worker_settings()) == all_of_them - left_out


def test_a_hook_of_the_users_own_is_called_by_ours(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    # As `ray job submit --runtime-env-json` passes it on.
    variables = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "tests.test_connection.their_hook", "MINE": "2"}
    runtime_env = {"worker_process_setup_hook": "tests.test_connection.their_hook", "env_vars": variables}
    submitted = json.dumps({"runtime_env": runtime_env, "metadata": {}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", submitted)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv("HOOK_CALLED", raising=False)

    def start(*, runtime_env: dict[str, Any], **_: object) -> None:
        theirs = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]
        assert theirs == {"env_vars": {"MINE": "2"}}  # Ray refuses what both set
        runtime_env["worker_process_setup_hook"]()
        raise ConnectionError("started")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    with pytest.raises(InputError):
        connect()
    assert os.environ.pop("HOOK_CALLED") == "10.0.0.1:6379"  # after ours
    assert os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] == submitted


def their_hook() -> None:
    """What a user sets up in each worker."""
    os.environ["HOOK_CALLED"] = os.environ["RAY_ADDRESS"]


# ----------------------------------------------------------------------------------------------- what ray.init itself says


def _refusal(error: Exception, monkeypatch: pytest.MonkeyPatch, address: str = "10.0.0.1:6379") -> str:
    import ray

    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(connection, "_asks_for_no_token", lambda address: False)
    return _mistake(monkeypatch, address)


def test_a_cluster_of_another_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.2.0", "python_version": "3.9.1"}, "node 10.0.0.1")
    assert _refusal(caught.value, monkeypatch).startswith(
        "the cluster runs Ray 2.2.0 on Python 3.9.1, and this job Ray 2.60.0 on Python 3."
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConnectionError("ray client\nis lost"),
            "no Ray answers there; start the cluster, or unset RAY_ADDRESS and the job starts its own",
        ),
        (
            RuntimeError("No node info found matching attributes: '' when trying"),
            "this machine is not a node of that cluster; submit the job (`ray job submit`)",
        ),
    ],
)
def test_a_cluster_that_is_lost_meanwhile(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _refusal(error, monkeypatch) == f"RAY_ADDRESS 10.0.0.1:6379: {said}"


@pytest.mark.parametrize(
    "text", ["The current node timed out during startup. This", "Timed out waiting for file /tmp/x"]
)
def test_a_machine_too_busy_to_start_a_ray(text: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert _refusal(Exception(text), monkeypatch, "local") == (
        "Ray did not start within half a minute: this machine is too busy; run the job again later"
    )


def test_an_internal_error_of_ray_stays_one(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    with pytest.raises(RuntimeError, match="internal"):
        _refusal(RuntimeError("internal"), monkeypatch, "local")
