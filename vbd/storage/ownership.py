"""One job at a time works in a folder: a run, a dataset, a training, a set of predictions.

`owner.json` in the folder names its owner, who renews it every few seconds. A job that starts there reads it: an owner on the
same machine is alive if its process is; one on another machine is alive if the file changes within three intervals (no clocks
are compared). A living owner is an error, the place of a dead one is taken. An owner whose place was taken, because its machine
stood still for longer than that, ends with an error.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbd import storage
from vbd.errors import FullError, InputError, StoreError, UnreachableError
from vbd.storage import deletion

OWNER = "owner.json"
# How often an owner renews the file, and how many intervals without a change prove that it is dead.
BEAT_SECONDS, _MISSED_BEATS = 5.0, 3
# How long two jobs that start at the same moment may take to see each other's file; the later one keeps the place.
_SETTLE_SECONDS, _SETTLE_SECONDS_OF_STORE = 0.2, 1.0
_MOST_BEAT_SECONDS = 60.0


@dataclass(frozen=True)
class _Record:
    """What `owner.json` holds."""

    id: str  # random
    job: str
    host: str
    machine: str  # boot id and namespace of process ids; empty where there is no /proc
    pid: int
    started: int  # of the process, in clock ticks since the machine was booted
    ray_job: str  # submission id; empty for a driver that was not submitted
    since: str  # UTC
    every: float  # seconds between two beats
    beat: int = 0

    @property
    def who(self) -> str:
        """The job and its process, for people."""
        return f"{self.job} (process {self.pid} on {self.host}{f', Ray job {self.ray_job}' if self.ray_job else ''})"

    def to_bytes(self) -> bytes:
        return f"{json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)}\n".encode()


@dataclass(frozen=True)
class _Seen:
    """The file at some moment; any change is a sign of life."""

    content: bytes
    mtime_ns: int  # on a disk; 0 in an object store, whose owner writes new content


_held: dict[tuple[int, str], "Owner"] = {}


@contextlib.contextmanager
def own(location: str, job: str) -> Iterator["Owner"]:
    """Inside it `job` (`tune`, `prepare`, ...) of this process is the only one that works in a folder.

    Raises InputError when another process works there, also at the end when one took over meanwhile. A stage of a job that
    owns the folder may own it again.
    """
    folder = storage.absolute(location).rstrip("/") or "/"
    key = os.getpid(), folder
    if key in _held:
        yield _held[key]
        return
    owner = Owner(folder, job)
    missing: list[str] = []
    try:
        missing = deletion.missing_folders(folder)
        # A full disk is waited for as it is elsewhere.
        storage.patiently(
            owner.acquire,
            seconds=storage.PATIENCE_SECONDS,
            say=lambda text: print(text, flush=True),
            faults=(UnreachableError, FullError),
        )
        _held[key] = owner
        try:
            yield owner
            owner.check()
        except BaseException as error:
            if owner.lost:  # which is why this process was interrupted
                raise InputError(owner.lost) from error
            raise
    finally:
        _held.pop(key, None)
        owner.release()
        _at_once(lambda: deletion.remove_empty(missing))


class Owner:
    """This process as the owner of a folder."""

    def __init__(self, folder: str, job: str):
        """Owns nothing yet."""
        self.folder, self.lost = folder, ""
        self._file = storage.join(folder, OWNER)
        self._mine = _record(job)
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._is_main = threading.current_thread() is threading.main_thread()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the folder; raises InputError when somebody works there."""
        while not self._is_taken():
            seen = _look(self._file)
            theirs = _parse(seen.content, self._file) if seen else None
            if seen is None or (theirs and theirs.id == self._mine.id):
                continue
            is_alive = _lives_here(theirs) if theirs else None
            if is_alive is None:
                is_alive = self._watch(seen, theirs)
            if is_alive and theirs:
                raise InputError(
                    f"{self.folder}: {theirs.who} has worked here since {theirs.since}; wait until it ends, stop it, or "
                    "choose another folder"
                )
            if is_alive is False and self._take_over(seen):
                break
        self._thread = threading.Thread(target=self._renew, daemon=True, name=f"owner of {self.folder}")
        self._thread.start()

    def _is_taken(self) -> bool:
        """Whether the folder was free, and is this process's now."""
        if not storage.write_new(self._file, self._mine.to_bytes()):
            return False
        return storage.is_local(self.folder) or self._settles(_SETTLE_SECONDS_OF_STORE)

    def _take_over(self, dead: _Seen) -> bool:
        """Whether the place of a dead owner is this process's now, and nobody else's who saw it dead too."""
        if _look(self._file) != dead:
            return False
        storage.write_bytes(self._file, self._mine.to_bytes())
        return self._settles(_SETTLE_SECONDS if storage.is_local(self.folder) else _SETTLE_SECONDS_OF_STORE)

    def _settles(self, seconds: float) -> bool:
        time.sleep(seconds)
        return self._is_mine(_look(self._file))

    def _is_mine(self, seen: _Seen | None) -> bool:
        theirs = _parse(seen.content, self._file) if seen else None
        return theirs is not None and theirs.id == self._mine.id

    def _watch(self, before: _Seen, theirs: _Record | None) -> bool | None:
        """Whether an owner on another machine renews the file; None when the file is another's by now, or gone."""
        every = theirs.every if theirs else BEAT_SECONDS
        seconds = _MISSED_BEATS * every
        who = f"{theirs.who} has worked here since {theirs.since}" if theirs else f"{OWNER} is empty"
        print(f"{self.folder}: {who}; waiting {seconds:.0f} s for a sign of life", flush=True)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(every / 4)
            now = _look(self._file)
            if now == before:
                continue
            later = _parse(now.content, self._file) if now else None
            return True if later and theirs and later.id == theirs.id else None
        return False

    # ------------------------------------------------------------------------------------------------ while it works

    def check(self) -> None:
        """Raises InputError when the folder is somebody else's by now; called before results are published."""
        with contextlib.suppress(StoreError):  # out of reach: what is written next will say so
            _at_once(self._look_after)
        if self.lost:
            raise InputError(self.lost)

    def _renew(self) -> None:
        while not self._ended.wait(self._mine.every):
            with contextlib.suppress(
                InputError
            ):  # a store out of reach, a file that is cut off: the next beat tries again
                _at_once(self._look_after)
                if not self.lost:
                    _at_once(self._beat)
            with self._lock:
                if self.lost and not self._ended.is_set() and self._is_main:
                    _interrupt_main()

    def _look_after(self) -> None:
        """Notices that the folder is somebody else's."""
        seen = _look(self._file)
        if self.lost or self._is_mine(seen):
            return
        theirs = _parse(seen.content, self._file) if seen else None
        self.lost = (
            f"{self.folder}: {theirs.who} has taken this folder over since {theirs.since}, while this job stood still; this "
            "job ends and leaves the folder to it"
            if theirs
            else f"{self._file}: removed while this job worked here, so another job may have worked here; run the same "
            "command again to resume"
        )

    def _beat(self) -> None:
        if storage.is_local(self.folder):
            storage.touch(self._file)  # needs no room on the disk, and cannot undo what somebody else has written
        else:
            self._mine = dataclasses.replace(self._mine, beat=self._mine.beat + 1)
            storage.write_bytes(self._file, self._mine.to_bytes())

    def release(self) -> None:
        """Gives the folder back; does nothing when it is somebody else's."""
        with self._lock:
            self._ended.set()
        if self._thread is not None:
            self._thread.join(2)
        with contextlib.suppress(InputError):  # a dead owner's place is taken anyway
            _at_once(self._remove)

    def _remove(self) -> None:
        if self._is_mine(_look(self._file)):
            storage.delete_file(self._file)


def others(names: list[str]) -> list[str]:
    """The names in a folder without that of its owner's file."""
    return [name for name in names if name != OWNER]


# ------------------------------------------------------------------------------------------------------------- records


def _record(job: str) -> _Record:
    """This process."""
    return _Record(
        id=uuid.uuid4().hex,
        job=job,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0,
        ray_job=_ray_job(),
        since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        every=BEAT_SECONDS,
    )


def _parse(content: bytes, location: str) -> _Record | None:
    """The record in a file; None when it is being written, or its writer was killed at that moment."""
    if not content.strip():
        return None
    try:
        values = json.loads(content)
        record = _Record(**{name: _typed(values[name], kind) for name, kind in _Record.__annotations__.items()})
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{location}: does not name the owner of this folder; remove the file if no job works here"
        ) from None
    return dataclasses.replace(record, every=min(max(record.every, 0.01), _MOST_BEAT_SECONDS))


def _typed(value: Any, kind: type) -> Any:
    """A value of that type; text is one line."""
    if not isinstance(value, (int, float) if kind is float else kind) or value != value:
        raise ValueError(value)
    return " ".join(value.split()) if isinstance(value, str) else value


def _look(location: str) -> _Seen | None:
    try:
        content = storage.read_bytes(location)
        return _Seen(content, Path(location).stat().st_mtime_ns if storage.is_local(location) else 0)
    except StoreError:
        raise
    except (InputError, FileNotFoundError):  # gone
        return None


def _at_once(action: Any) -> None:
    """Without waiting for a store that does not answer."""
    storage.patiently(action, seconds=0, say=lambda _: None)


# ----------------------------------------------------------------------------------------------------------- processes


def _lives_here(record: _Record) -> bool | None:
    """Whether a process of this machine is alive; None when that cannot be seen from here."""
    if not record.machine or record.machine != _machine() or record.pid <= 0:
        return None
    if record.pid == os.getpid():  # which could not remove it when it was done there, or has its number
        return False
    try:
        os.kill(record.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    started = _started(record.pid)
    return None if started is None else started == record.started


def _machine() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine was booted; 0 when it has ended; None when hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


def _ray_job() -> str:
    """The submission id, as Ray passes it to the driver of a submitted job."""
    try:
        return str(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return ""


def _interrupt_main() -> None:
    """Ends what the main thread does as SIGTERM would, where that is handled; Tune handles SIGINT in its own way."""
    number = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)
