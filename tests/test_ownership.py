"""Who works in a folder: every way to find somebody there, without Ray and with intervals of a fraction of a second."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import ROOT
from tests.owners import FAR, FAR_WHO, near, working_in, write_owner
from vbd import storage
from vbd.errors import FullError, InputError, UnreachableError
from vbd.storage import ownership
from vbd.storage.ownership import OWNER, own


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(ownership, "_SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(ownership, "_SETTLE_SECONDS_OF_STORE", 0.1)


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on a disk, and in an object store."""
    if request.param == "disk":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('s3_bucket')}/owners/{tmp_path.name}"


def _owner_of(folder: str) -> str:
    return str(storage.read_object(f"{folder}/{OWNER}")["job"])


@pytest.fixture
def beating() -> Iterator[Callable[[str], None]]:
    """Somebody on another machine who renews its file until the test ends."""
    ended, threads = threading.Event(), []

    def start(folder: str) -> None:
        def beat() -> None:
            for number in range(10_000):
                if ended.wait(0.02):
                    return
                write_owner(folder, FAR | {"beat": number})

        write_owner(folder, FAR)
        threads.append(threading.Thread(target=beat))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def test_a_free_folder_is_taken_and_given_back_with_what_was_made_for_it(folder: str) -> None:
    with own(folder, "prepare") as owner:
        record = storage.read_object(f"{folder}/{OWNER}")
        assert (record["job"], record["pid"], record["every"], record["ray_job"]) == ("prepare", os.getpid(), 0.1, "")
        assert ownership.others(storage.list_names(folder)) == []
        owner.check()
        with own(folder, "ensemble") as inner:  # a stage of the same job
            assert inner is owner
        assert _owner_of(folder) == "prepare"
    assert not storage.exists(folder)


def test_a_file_that_this_process_could_not_remove_is_no_hindrance(folder: str) -> None:
    write_owner(folder, near(os.getpid()))
    with own(f"{folder}/", "prepare"), own(folder, "tune"):
        assert _owner_of(folder) == "prepare"


def test_what_lies_in_the_folder_stays_and_an_error_comes_through(folder: str) -> None:
    storage.write_bytes(f"{folder}/file", b"1")
    with pytest.raises(KeyboardInterrupt), own(folder, "prepare"):
        raise KeyboardInterrupt
    assert storage.list_names(folder) == ["file"]


def test_the_submission_id_of_ray_is_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_9"}}))
    with own(str(tmp_path), "tune"):
        assert storage.read_object(str(tmp_path / OWNER))["ray_job"] == "raysubmit_9"


def test_a_living_process_of_this_machine_is_refused_at_once(folder: str) -> None:
    with working_in(folder) as told:
        with pytest.raises(InputError) as caught, own(folder, "tune"):
            pass
        assert str(caught.value) == told
    assert _owner_of(folder) == "tune"  # its own


@pytest.mark.parametrize("kind", ["ended", "zombie", "another process with its number"])
def test_the_place_of_a_dead_process_is_taken_at_once(
    kind: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = subprocess.Popen(["sleep", "60"])
    record = near(other.pid)
    if kind == "another process with its number":
        record["started"] -= 1
    else:
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | (os.WNOWAIT if kind == "zombie" else 0))
    write_owner(folder, record)
    with own(folder, "prepare"):
        assert _owner_of(folder) == "prepare"
    assert capsys.readouterr().out == ""
    other.kill()
    other.wait()


def test_a_living_owner_on_another_machine_is_refused(
    folder: str, beating: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    beating(folder)
    with (
        pytest.raises(
            InputError, match=r"tune \(process 7 on far, Ray job raysubmit_1\) has worked here since 2026-01-02"
        ),
        own(folder, "prepare"),
    ):
        pass
    assert capsys.readouterr().out == (
        f"{folder}: {FAR_WHO} has worked here since 2026-01-02 03:04:05 UTC; waiting 0 s for a sign of life\n"
    )


def test_a_living_owner_on_another_machine_may_renew_the_time_of_its_file_alone(tmp_path: Path) -> None:
    write_owner(str(tmp_path), FAR | {"every": 1.0})
    watch = threading.Timer(0.3, storage.touch, [str(tmp_path / OWNER)])
    watch.start()
    with pytest.raises(InputError, match="has worked here since"), own(str(tmp_path), "prepare"):
        pass


@pytest.mark.parametrize("content", [FAR, None], ids=["record", "killed as it began to write"])
def test_the_place_of_a_dead_owner_on_another_machine_is_taken_after_three_intervals(
    folder: str, content: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content:
        write_owner(folder, content)
    else:
        storage.write_bytes(f"{folder}/{OWNER}", b"")
    with own(folder, "prepare"):
        assert _owner_of(folder) == "prepare"
    assert capsys.readouterr().out.count("for a sign of life\n") == 1


@pytest.mark.parametrize("content", [b"{}", b'{"owner": "me"}', b"[1", json.dumps(FAR | {"pid": "7"}).encode()])
def test_a_file_that_is_no_record_is_left(content: bytes, tmp_path: Path) -> None:
    (tmp_path / OWNER).write_bytes(content)
    with pytest.raises(InputError) as caught, own(str(tmp_path), "prepare"):
        pass
    assert str(caught.value) == (
        f"{tmp_path}/owner.json: does not name the owner of this folder; remove the file if no job works here"
    )
    assert (tmp_path / OWNER).read_bytes() == content


def test_an_owner_that_ends_while_it_is_watched_leaves_the_place(folder: str) -> None:
    write_owner(folder, FAR | {"every": 2.0})
    threading.Timer(0.2, storage.delete_file, [f"{folder}/{OWNER}"]).start()
    with own(folder, "prepare"):
        assert _owner_of(folder) == "prepare"


# A process that waits for the moment at which others start too, and keeps what it has taken.
_STARTER = """
import sys, time
from vbd.storage import ownership
from vbd.errors import InputError
ownership.BEAT_SECONDS = 0.2
while time.time() < float(sys.argv[2]):
    pass
try:
    with ownership.own(sys.argv[1], "prepare"):
        print("mine", flush=True)
        time.sleep(1.5)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("before", [None, FAR | {"every": 0.05}], ids=["free", "dead"])
def test_of_processes_that_start_at_once_one_takes_the_folder(before: dict[str, Any] | None, folder: str) -> None:
    if before:
        write_owner(folder, before)
    at = str(time.time() + 3)
    started = [
        subprocess.Popen([sys.executable, "-c", _STARTER, folder, at], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [process.communicate(timeout=60)[0] for process in started]
    assert sum(text.endswith("mine\n") for text in told) == 1, told
    assert sum("has worked here since" in text or "has taken this folder over" in text for text in told) >= 2, told
    assert not storage.exists(f"{folder}/{OWNER}")


@pytest.fixture
def _terminable() -> Iterator[None]:
    """SIGTERM is handled as in a job; a shell starts what runs in the background without SIGINT."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_terminable")
def test_an_owner_whose_place_was_taken_ends_with_an_error_and_leaves_it(folder: str) -> None:

    def work() -> None:
        with own(folder, "prepare"):
            for _ in range(3000):  # the main thread is interrupted in whatever it does
                write_owner(folder, FAR)
                time.sleep(0.01)
            ended.append(1)

    ended: list[int] = []
    with pytest.raises(InputError) as caught:
        work()
    assert str(caught.value) == (
        f"{folder}: {FAR_WHO} has taken this folder over since 2026-01-02 03:04:05 UTC, while this job stood still; this job "
        "ends and leaves the folder to it"
    )
    assert _owner_of(folder) == "tune"
    assert ended == []


def test_a_loss_is_found_before_results_are_published(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 60.0)  # as after a pause: the thread comes later
    published = []

    def publish() -> None:
        with own(folder, "x") as owner:
            storage.delete_file(f"{folder}/{OWNER}")
            owner.check()
            published.append(1)

    with pytest.raises(InputError, match=r"owner\.json: removed while this job worked here"):
        publish()
    assert published == []
    with pytest.raises(InputError, match="has taken this folder over"), own(folder, "x"):
        write_owner(folder, FAR)  # and at its end
    assert _owner_of(folder) == "tune"


def test_a_beat_never_brings_back_a_record(folder: str) -> None:
    owner = ownership.Owner(folder, "prepare")
    owner.acquire()
    owner._ended.set()
    write_owner(folder, FAR)
    owner._look_after()
    assert owner.lost
    owner.release()
    assert _owner_of(folder) == "tune"


def test_a_store_out_of_reach_for_a_while_loses_nothing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = storage.read_bytes, threading.Event()

    def out_of_reach(location: str) -> bytes:
        failed.set()
        raise UnreachableError(f"{location}: no answer")

    with own(folder, "prepare") as owner:
        monkeypatch.setattr(storage, "read_bytes", out_of_reach)
        assert failed.wait(30)
        owner.check()
        monkeypatch.setattr(storage, "read_bytes", real)
        owner.check()
    assert not storage.exists(f"{folder}/{OWNER}")


def test_a_folder_that_cannot_be_written_is_told_as_ever(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file/run/owner\.json: cannot be written"),
        own(str(tmp_path / "file/run"), "x"),
    ):
        pass


def test_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, full = storage.write_new, iter([True])

    def fill(location: str, data: bytes) -> bool:
        if next(full, False):
            raise FullError(f"{location}: no space left on the device")
        return real(location, data)

    monkeypatch.setattr(storage, "write_new", fill)
    with own(str(tmp_path / "run"), "tune"):
        assert _owner_of(str(tmp_path / "run")) == "tune"
    assert "owner.json: no space left on the device; tried again for 600 s" in capsys.readouterr().out


def test_links_above_the_folder_lead_to_the_same_owner(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "runs").symlink_to("big")
    with own(str(tmp_path / "runs" / "run"), "tune") as owner, own(str(tmp_path / "big" / "run"), "tune") as same:
        assert same is owner
        assert (tmp_path / "big" / "run" / OWNER).exists()
