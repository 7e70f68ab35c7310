"""The connection of a job to Ray: to the cluster that `RAY_ADDRESS` names or that runs on this machine, or to a Ray of its own.

Everything that a user can fix is checked before Ray starts: Ray itself retries for minutes and then raises an internal error.
"""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from vbd.cluster import ray_noise, versions
from vbd.cluster.own_ray import check_own_ray
from vbd.commands import submit_command
from vbd.errors import InputError

# Read by Ray when it starts, here and in every worker.
_RAY_SETTINGS = {
    # Tune's snapshots carry its logs to the run folder and nothing else that counts: as often as Tune thinks fit.
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_SCHEDULER_EVENTS": "0",  # the autoscaler's, one a second for each trial that waits; our own line is shorter
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # unreadable in job logs; our own lines say more
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Set by `ray job submit`: the job's configuration with its runtime environment, as JSON.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Where Ray hands a job's hook on to its workers; a submitted job brings it beside the hook.
_HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"

# They announce, at WARNING or INFO, what our own lines say or what is meant to be so.
_NOISY_LOGGERS = ("ray._private.authentication.authentication_token_setup",)

# A call that every Ray head answers without side effects; neither another port of Ray nor another server knows it.
_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_CONNECT_SECONDS, _ANSWER_SECONDS = 8.0, 15.0
_FORMS = "want the head's HOST:PORT (its port is 6379 by default), auto or local"


def connect() -> None:
    """Connects to the Ray cluster this job runs on, or starts one on this machine, and says which.

    `ray job submit` passes the address through the environment, so `ray.init` gets no address here. A cluster of our own
    serves its dashboard on localhost only. Raises InputError when the cluster does not answer, refuses this job or has another
    Ray or Python, and when this machine cannot run a Ray.
    """
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    ray_noise.start_filter()  # for each job of this process: the one before has ended its own
    is_open = False
    if not ray.is_initialized():
        address = _address()
        is_open = _asks_for_no_token(address) if address else False
        if not address:
            check_own_ray()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with _without_hook() as hook:
                environment = {
                    "env_vars": _worker_settings(),
                    "worker_process_setup_hook": ray_noise.worker_setup(hook),
                }
                ray.init(logging_level=logging.WARNING, log_to_driver=True, runtime_env=environment)
        except Exception as error:
            if not address:
                check_own_ray()  # the disk may be full only now
            if mistake := _user_error(error, address):
                raise mistake from error
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has installed its own, which dumps a stack
    resources = ray.cluster_resources()
    dashboard = ray.get_runtime_context().worker.node.address_info.get("webui_url") or ""
    print(
        f"ray {ray.__version__}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs on {len(ray.nodes())} node(s)"
        + (f"; dashboard http://{dashboard}" if dashboard else ""),
        flush=True,
    )
    if is_open:
        print(_open_warning(ray.get_runtime_context().gcs_address), end="", flush=True)


def _worker_settings() -> dict[str, str]:
    """Variables for the workers; those of the job's own runtime environment reach them anyway, and Ray accepts none twice."""
    settings = {name: os.environ[name] for name in _RAY_SETTINGS}
    settings[versions.VARIABLE] = json.dumps(versions.installed())
    submitted = _submitted().get("runtime_env") or {}
    return {name: value for name, value in settings.items() if name not in (submitted.get("env_vars") or {})}


def _submitted() -> dict[str, Any]:
    """The configuration of a submitted job; empty for any other."""
    config: dict[str, Any] = json.loads(os.environ.get(_SUBMITTED) or "{}")
    return config


@contextlib.contextmanager
def _without_hook() -> Iterator[str]:
    """Takes `worker_process_setup_hook` out of the job's own runtime environment, and yields its "module.function" or "".

    Ray accepts one hook, and ours calls the user's.
    """
    config = _submitted()
    environment = config.get("runtime_env") or {}
    hook = environment.pop("worker_process_setup_hook", None)
    if not hook:
        yield ""
        return
    (environment.get("env_vars") or {}).pop(_HOOK_VARIABLE, None)
    before, os.environ[_SUBMITTED] = os.environ[_SUBMITTED], json.dumps(config)
    try:
        yield hook
    finally:
        os.environ[_SUBMITTED] = before


# --------------------------------------------------------------------------------------------------------- before ray.init


def _asked() -> str:
    return os.environ.get("RAY_ADDRESS", "")


def _address() -> str:
    """The address HOST:PORT of the cluster that `ray.init` will connect to; "" when it will start one."""
    from ray._private import services

    if _asked() not in ("", "auto", "local"):
        _check_form(_asked())
    logger = logging.getLogger(services.__name__)
    logger.disabled = True  # `ray.init` looks for it once more and reports what it finds
    try:
        return services.canonicalize_bootstrap_address(None) or ""
    except ConnectionError:
        raise InputError(
            "RAY_ADDRESS auto: no Ray runs on this machine; start one (`ray start --head`), or unset RAY_ADDRESS and the job "
            "starts its own"
        ) from None
    finally:
        logger.disabled = False


def _check_form(address: str) -> None:
    scheme, separator, rest = address.partition("://")
    if separator and scheme in ("http", "https"):
        raise InputError(
            f"RAY_ADDRESS {address}: this is the address of a dashboard; submit the job there (`{submit_command(address)}`), "
            f"or give the head's HOST:PORT, {rest.split(':')[0]}:6379 by default"
        )
    if separator and scheme == "ray":
        dashboard = f"http://{rest.split(':')[0]}:8265"
        raise InputError(
            f"RAY_ADDRESS {address}: Ray Client is not supported; submit the job "
            f"(`{submit_command(dashboard)}`), or run it on a node and give HOST:PORT"
        )
    host, colon, port = address.rpartition(":")
    if separator or not host or not colon:
        raise InputError(f"RAY_ADDRESS {address}: not an address of Ray; {_FORMS}")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"RAY_ADDRESS {address}: port {port!r} is not a number from 1 to 65535; {_FORMS}")


def _asks_for_no_token(address: str) -> bool:
    """Whether the cluster at an address lets everybody in. Raises InputError when none answers there, or it refuses this job."""
    _check_listens(address)
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return False  # it asks for a certificate, which `ray.init` reads
    from ray._private import services

    code = _answer(address)
    if code == "UNAUTHENTICATED":
        _check_token(address)
    elif code == "UNIMPLEMENTED":
        raise InputError(
            f"{_where(address)}: another port of Ray listens there, or another server, and not the head; {_FORMS}"
        )
    elif code != "OK":
        raise InputError(f"{_where(address)}: something listens there, and it is no Ray ({code}); {_FORMS}")
    if not services.find_node_ids():
        raise InputError(
            f"{_where(address)}: this machine is not a node of that cluster; submit the job (`ray job submit`), or add this "
            f"machine first (`ray start --address {address}`)"
        )
    return code == "OK"


def _check_listens(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except socket.gaierror:
        raise InputError(f"{_where(address)}: no machine is called {host}; {_FORMS}") from None
    except TimeoutError:
        raise InputError(
            f"{_where(address)}: no answer within {_CONNECT_SECONDS:.0f} s; is the address right, and the way there open?"
        ) from None
    except OSError as error:
        raise InputError(
            f"{_where(address)}: no Ray answers there ({error.strerror}); {_how_to_start(address)}"
        ) from None


def _answer(address: str, token: str = "") -> str:
    """The gRPC status with which the server at an address answers a call that only a Ray head knows."""
    import grpc  # type: ignore[import-untyped]  # comes with Ray

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(_CALL, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=_ANSWER_SECONDS, metadata=[("authorization", f"Bearer {token}")] if token else None)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def _check_token(address: str) -> None:
    """Raises InputError when this job sends no token to a cluster that asks for one, or a wrong one."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled
    from ray.exceptions import AuthenticationError

    place = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else os.environ.get("RAY_AUTH_TOKEN_PATH")
    place = place or "~/.ray/auth_token"
    loader = AuthenticationTokenLoader.instance()
    try:
        token = loader.get_raw_token(ignore_auth_mode=True) if loader.has_token(ignore_auth_mode=True) else ""
    except AuthenticationError:  # RAY_AUTH_TOKEN_PATH leads nowhere
        token = ""
    mode = os.environ.get("RAY_AUTH_MODE", "" if _asked() not in ("", "auto") else "token")
    if not token:
        raise InputError(
            f"{_where(address)}: the cluster asks for a token, and {place} holds none; write the cluster's token there, "
            "readable by you alone, and export RAY_AUTH_MODE=token"
        )
    if mode.lower() != "token":
        raise InputError(
            f"{_where(address)}: the cluster asks for a token, and RAY_AUTH_MODE is {mode or 'not set'}; export "
            "RAY_AUTH_MODE=token"
        )
    if _answer(address, token) == "UNAUTHENTICATED":
        raise InputError(
            f"{_where(address)}: the cluster refuses the token of {place}; put there the token that the cluster was started "
            "with"
        )


def _where(address: str) -> str:
    """What the user set, and the address that Ray makes of it where that is another one."""
    if not _asked():
        return f"the Ray of this machine at {address}"
    return f"RAY_ADDRESS {_asked()}" + (f" ({address})" if address != _asked() else "")


def _how_to_start(address: str) -> str:
    from ray._common.utils import get_ray_address_file

    if not _asked():
        return (
            f"it has ended without removing {get_ray_address_file(None)}: remove that file, or export RAY_ADDRESS=local"
        )
    advice = "start the cluster, or unset RAY_ADDRESS and the job starts its own"
    if address == _asked():
        return advice
    return f"{advice}; one that listens on localhost alone needs RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in this shell too"


# ---------------------------------------------------------------------------------------------------------- after ray.init


def _open_warning(address: str) -> str:
    """A line about a cluster that asks for no token; "" when only this machine reaches it."""
    host = address.rpartition(":")[0].strip("[]")
    if host in ("localhost", "::1") or host.startswith("127."):
        return ""
    return (
        f"warning: the cluster at {address} asks for no token: whoever reaches this address can run code there; start it "
        "with RAY_AUTH_MODE=token (docs/security.md)\n"
    )


def _user_error(error: Exception, address: str) -> InputError | None:
    """What the user can do about an error of `ray.init`, in one line; None when it is not the user's to fix."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    found = re.search(r"Version mismatch: .*Ray: (\S+) Python: (\S+) .*Ray: (\S+) Python: (\S+)", text)
    if found:
        theirs, their_python, ours, our_python = found.groups()
        return InputError(
            f"the cluster runs Ray {theirs} on Python {their_python}, and this job Ray {ours} on Python {our_python}; install on "
            "both what constraints.txt says"
        )
    if "No node info found" in text:
        return InputError(
            f"{_where(address)}: this machine is not a node of that cluster; submit the job (`ray job submit`)"
        )
    if isinstance(error, ConnectionError):
        return InputError(f"{_where(address)}: no Ray answers there; {_how_to_start(address)}")
    if "timed out during startup" in text or "Timed out waiting for file" in text:
        return InputError("Ray did not start within half a minute: this machine is too busy; run the job again later")
    return None
