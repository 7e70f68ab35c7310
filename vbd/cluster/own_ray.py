"""What a Ray that a job starts by itself needs of this machine: a temporary folder, and a home that keeps its token."""

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from vbd.errors import InputError

_TEMPORARY_BYTES = 50_000_000  # logs of Ray's processes in its first minutes
_LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/dash_MetricsHead"
_SOCKET_BYTES = 107  # Linux: sun_path without its closing zero


def check_own_ray() -> None:
    """Raises InputError when this machine cannot start a Ray. Its token is created, and made readable by the user alone."""
    _check_temporary_folder()
    _keep_token()


def _check_temporary_folder() -> None:
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    folder = Path(os.environ[name] if name else "/tmp")
    where = f"{name} {folder}" if name else str(folder)
    other = "export RAY_TMPDIR with a folder"
    if not folder.is_absolute():
        raise InputError(f"{where}: Ray needs an absolute path for its temporary files; {other}")
    length = len(os.fsencode(folder / _LONGEST_SOCKET))
    if length > _SOCKET_BYTES:
        raise InputError(
            f"{where}: too long for the sockets that Ray makes below it ({length} bytes, at most {_SOCKET_BYTES}); {other} of "
            f"at most {_SOCKET_BYTES - len(_LONGEST_SOCKET) - 1} bytes"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1_000_000))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(
            f"{where}: Ray cannot write its temporary files there ({error.strerror}); {other} elsewhere"
        ) from None
    if free < _TEMPORARY_BYTES:
        raise InputError(
            f"{where}: {free / 1e6:.0f} MB free, and Ray needs {_TEMPORARY_BYTES / 1e6:.0f} MB for its temporary files; free "
            f"some, or {other} elsewhere"
        )


def _keep_token() -> None:
    """Keeps Ray's token in a file that only the user can read: the one that Ray creates, others can read."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path("~/.ray/auth_token").expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_token(path)
    except OSError as error:
        raise InputError(
            f"{path}: Ray cannot keep its token there ({error.strerror}); set HOME to a folder that can be written, or set "
            "RAY_AUTH_TOKEN to a secret of your own"
        ) from None
    facts = path.stat()
    if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) & 0o077:
        with contextlib.suppress(OSError):  # a file system without modes
            path.chmod(0o600)


def _write_token(path: Path) -> None:
    """Writes a new token, unless another job that starts now is quicker: both must read the same one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
