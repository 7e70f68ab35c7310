"""Nothing that befalls a search changes what it finds: real processes, killed, starved and cut off."""

import contextlib
import dataclasses
import json
import os
import random
import runpy
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nodes import ROOT, Proxy
from tests.search.faulty_searches import SEARCH, Fault, FaultySearch
from vbd import storage
from vbd.cli import main
from vbd.config import RunOptions
from vbd.config.presets import preset_of
from vbd.data.prepared import open_dataset
from vbd.models.weights import load_tensors
from vbd.records import Trial
from vbd.search.kept.leaderboard import read_leaderboard
from vbd.search.kept.trial import read_trials
from vbd.search.run import run_search
from vbd.search.space.draws import draw_configs
from vbd.search.space.settings import search_from

pytestmark = pytest.mark.slow  # each start of a search is one of Ray, too

# What depends on where and when a trial ran, in a trial and in its reports.
_OF_TIME = {"host", "device", "seconds", "peak_memory_mb", "images_per_second", "validation_seconds"}
_OF_TIME |= {"attempt_started", "timestamp", "micro_batch"}


@pytest.fixture(scope="module")
def undisturbed(prepared: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the search that nothing befell."""
    root = tmp_path_factory.mktemp("undisturbed")
    run_search(SEARCH, data=prepared, storage_root=str(root), name="run", options=RunOptions(device="cpu"))
    return root / "run"


@pytest.fixture
def searches(prepared: str, tmp_path: Path) -> Iterator[Any]:
    """Starts a search in the same folder, again and again; none outlives the test."""
    started: list[FaultySearch] = []

    def start(*faults: Fault, **more: Any) -> FaultySearch:
        started.append(FaultySearch(tmp_path, more.pop("data", prepared), faults=faults, **more))
        return started[-1]

    yield start
    for search in started:
        search.kill_all()


def _rates(prepared: str) -> list[float]:
    """The learning rates of the trials in the order in which they start; the first two do together."""
    return [config.learning_rate for config in draw_configs(SEARCH, open_dataset(prepared))]


def _lasting(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _OF_TIME}


def _comparable(run: Path) -> list[dict[str, Any]]:
    """The leaderboard without times and places; paths are relative to the run's folder."""
    rows = json.loads((run / "leaderboard.json").read_text())["trials"]
    return [
        _lasting(row)
        | {"metrics": _lasting(row["metrics"]), "history": [_lasting(report) for report in row["history"]]}
        for row in rows
    ]


def _assert_same(run: Path, undisturbed: Path) -> None:
    """Same leaderboard, detections and kept weights, to the last bit; nothing half-written is left."""
    assert _comparable(run) == _comparable(undisturbed)
    for trial in read_leaderboard(str(undisturbed)).trials:
        name = Path(trial.detections).relative_to(undisturbed)
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes()
    ours, theirs = (load_tensors(str(folder / "best" / "yolox-1" / "model.pt")) for folder in (run, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    manifests = [json.loads((folder / "best" / "manifest.json").read_text()) for folder in (run, undisturbed)]
    assert manifests[0]["members"][0]["trial_id"] == manifests[1]["members"][0]["trial_id"]
    assert _checkpoints(run) == _checkpoints(undisturbed)
    assert not list((run / "trials").rglob("*.tmp"))


def _checkpoints(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.glob("trials/*/step-*")}


def _trials(run: Path) -> dict[float, Trial]:
    """By learning rate."""
    return {trial.config.learning_rate: trial for trial in read_trials(str(run))}


def _attempts(trial: Trial) -> list[tuple[int, float]]:
    return [(report["step"], report["attempt_started"]) for report in trial.history]


def _is_finished(run: Path, rate: float) -> bool:
    return any(trial.config.learning_rate == rate and trial.status == "finished" for trial in read_trials(str(run)))


def test_a_driver_killed_again_and_again_ends_with_the_leaderboard_of_an_undisturbed_one(
    undisturbed: Path, searches: Any, prepared: str
) -> None:
    first, second, third = _rates(prepared)
    # Before any checkpoint.
    search = searches(Fault("hold", first, 1), Fault("hold", second, 2))
    search.wait_until(lambda: search.held(first, 1) and search.held(second, 2))
    search.kill_all()
    run = search.run
    assert [trial.status for trial in read_trials(str(run))] == ["running", "running"]
    # Between checkpoints, the driver alone: its trials live on for a while, and the next start comes at once.
    search = searches(Fault("hold", first, 7), Fault("hold", third, 4))
    search.wait_until(lambda: search.held(first, 7) and search.held(third, 4))
    search.kill_driver()
    before = _trials(run)
    assert [before[rate].status for rate in (first, second, third)] == ["running", "finished", "running"]
    assert [before[rate].history[-1]["step"] for rate in (first, second, third)] == [6, 9, 3]
    # At some moment.
    search = searches()
    time.sleep(random.Random(3).uniform(6, 12))
    search.kill_all()
    # While it writes what it found.
    for place in ("leaderboard.json", "best/yolox-1", "best/manifest.json"):
        search = searches(Fault("write", place=place))
        assert search.end() == -signal.SIGKILL, search.output
        assert not (run / place).exists()
    assert searches().end() == 0
    after = _trials(run)
    assert _attempts(after[second]) == _attempts(before[second])
    for rate, step in ((first, 6), (third, 3)):
        assert _attempts(after[rate])[: step // 3] == _attempts(before[rate])
        assert _attempts(after[rate])[step // 3][1] > before[rate].history[-1]["attempt_started"]
    _assert_same(run, undisturbed)


def test_a_terminated_search_tells_what_it_has_and_the_same_command_goes_on(
    undisturbed: Path, searches: Any, prepared: str
) -> None:
    first, second, third = _rates(prepared)
    search = searches(Fault("hold", first, 4), Fault("hold", third, 4))
    search.wait_until(lambda: search.held(first, 4) and search.held(third, 4))
    search.process.terminate()
    assert search.end() == 143, search.output
    assert "interrupted; the same command goes on from here" in search.output
    assert not search.tracebacks, search.output
    board = {trial.config.learning_rate: trial for trial in read_leaderboard(str(search.run)).trials}
    assert {rate: trial.status for rate, trial in board.items()} == {
        **{first: "unfinished", second: "finished", third: "unfinished"}
    }
    assert [report["step"] for report in board[first].history] == [3]
    assert searches().end() == 0
    assert _attempts(_trials(search.run)[second]) == _attempts(board[second])
    _assert_same(search.run, undisturbed)


def test_who_dies_is_tried_again_who_always_dies_or_has_no_memory_ends_with_its_reason_and_the_others_go_on(
    undisturbed: Path, searches: Any
) -> None:
    once, always, starved, diverges = 1e-3, 2e-3, 4e-3, 8e-3
    candidate = replace(SEARCH.candidates[0], choices={"learning_rate": (once, always, starved, diverges)})
    wider = replace(SEARCH, candidates=(candidate,))
    faults = (Fault("kill", once, 4), Fault("kill", always, 4, times=9), Fault("memory", starved, 4, times=9))
    search = searches(*faults, Fault("diverge", diverges, 4), search=wider)
    assert search.end() == 0, search.output
    found = {trial.config.learning_rate: trial for trial in read_leaderboard(str(search.run)).trials}
    assert {rate: trial.status for rate, trial in found.items()} == {
        **{once: "finished", always: "died", starved: "failed", diverges: "failed"}
    }
    assert len({started for _, started in _attempts(found[once])}) == 2
    assert found[always].reason.startswith("its process died 2 time(s)")
    assert "out of memory at step 4 with one image at a time" in found[starved].reason
    assert "gradient is no finite number at step" in found[diverges].reason
    assert "its process died; it is tried again from its last checkpoint" in search.output
    told = (search.run / "leaderboard.txt").read_text()
    assert all(found[rate].reason in told for rate in (always, starved, diverges))

    again = searches(search=wider)
    assert again.end() == 0, again.output
    after = _trials(search.run)
    assert {rate: trial.status for rate, trial in after.items()} == {
        **{once: "finished", always: "finished", starved: "failed", diverges: "failed"}
    }
    assert _attempts(after[always])[0] == _attempts(found[always])[0]  # of step 3
    assert [_attempts(after[rate]) for rate in (once, starved)] == [_attempts(found[rate]) for rate in (once, starved)]
    rows, wanted = (
        {row["config"]["learning_rate"]: row for row in _comparable(run)} for run in (search.run, undisturbed)
    )
    for rate in (once, always):
        assert rows[rate]["history"] == wanted[rate]["history"]


def test_trials_of_a_node_that_dies_go_on_elsewhere(undisturbed: Path, searches: Any, prepared: str) -> None:
    first, second, _ = _rates(prepared)
    search = searches(Fault("hold", first, 4), Fault("hold", second, 4), nodes=2)
    search.wait_until(lambda: search.held(first, 4) and search.held(second, 4))
    search.lose_a_node()
    search.let_go()
    assert search.end() == 0, search.output
    after = _trials(search.run)
    assert sorted(len({started for _, started in _attempts(after[rate])}) for rate in (first, second)) == [1, 2]
    _assert_same(search.run, undisturbed)


def test_workers_of_a_trial_go_on_together_when_one_of_them_dies(searches: Any) -> None:
    candidate = replace(SEARCH.candidates[0], choices={"learning_rate": (1e-3,)})
    search = searches(
        Fault("kill", 1e-3, 4, rank=1),
        search=replace(SEARCH, candidates=(candidate,), workers_per_trial=2),
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    )
    assert search.end() == 0, search.output
    (trial,) = read_leaderboard(str(search.run)).trials
    assert trial.status == "finished"
    assert [(report["step"], report["workers"]) for report in trial.history] == [(3, 2), (6, 2), (9, 2)]
    assert len({started for _, started in _attempts(trial)}) == 2
    assert "goes on from step 3" in search.output


# ------------------------------------------------------------------------------------------------- what is no fault of Ray


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for a search and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path) -> Path:
    """Leaves no block free; returns the file to remove."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return filler


def test_a_full_disk_is_waited_for_and_what_was_there_stays_whole(
    undisturbed: Path, searches: Any, prepared: str, small_disk: Path
) -> None:
    first, second, _ = _rates(prepared)
    run = small_disk / "run"
    holds = (Fault("hold", first, 4), Fault("hold", second, 1))
    search = searches(*holds, storage_root=str(small_disk), VBD_PATIENCE_SECONDS="2")
    search.wait_until(lambda: search.held(first, 4) and search.held(second, 1))
    filler = _fill(small_disk)
    search.let_go()
    assert search.end() == 2, search.output
    assert search.errors[-1].startswith(f"error: {run}/"), search.output
    assert "no space left on the device; free some or choose another folder" in search.errors[-1]
    assert not search.tracebacks, search.output
    assert [report["step"] for report in _trials(run)[first].history] == [3]

    again = searches(storage_root=str(small_disk))
    again.wait_until(lambda: "no space left on the device; free some or choose another folder; tried" in again.output)
    filler.unlink()
    assert again.end() == 0, again.output
    _assert_same(run, undisturbed)


def test_a_store_out_of_reach_is_waited_for(
    undisturbed: Path, searches: Any, prepared: str, s3_bucket: str, tmp_path: Path
) -> None:
    first, second, _ = _rates(prepared)
    proxy = Proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    there = {"storage_root": f"{s3_bucket}/faults", "AWS_ENDPOINT_URL": proxy.url}
    there["AWS_MAX_ATTEMPTS"] = "1"  # the client itself need not try for six seconds each time
    holds = (Fault("hold", first, 4), Fault("hold", second, 1))
    search = searches(*holds, **there, VBD_PATIENCE_SECONDS="2")
    search.wait_until(lambda: search.held(first, 4) and search.held(second, 1))
    proxy.shut()
    search.let_go()
    assert search.end() == 2, search.output
    assert search.errors[-1].startswith(f"error: {s3_bucket}/faults/run/"), search.output
    assert not search.tracebacks, search.output

    proxy.open()
    again = searches(Fault("hold", first, 7), **there)
    again.wait_until(lambda: again.held(first, 7))
    proxy.shut()
    again.let_go()
    again.wait_until(lambda: "; tried again for " in again.output)
    proxy.open()
    assert again.end() == 0, again.output
    storage.copy_folder(f"{s3_bucket}/faults/run", str(tmp_path / "copy"))
    _assert_same(tmp_path / "copy", undisturbed)


def _refusal(job: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The last of what a refused command prints, to stderr."""
    monkeypatch.setattr("sys.argv", ["tune.py", *flags])
    with pytest.raises(SystemExit) as stop:
        main(job)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_another_search_or_dataset_in_its_folder_is_told_in_one_line(
    prepared: str,
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search = search_from(preset_of("search"), trials=2, families=("yolox",), set=("image_size=64",))
    fingerprint = open_dataset(prepared).fingerprint
    claim = {"search": json.loads(json.dumps(dataclasses.asdict(search))), "dataset": fingerprint}
    job = runpy.run_path(str(ROOT / "jobs" / "tune.py"))["tune"]
    where = ("--data", prepared, "--storage", str(tmp_path), "--name", "run", "--device", "cpu")
    flags = ("search", *where, "--families", "yolox", "--set", "image_size=64")
    run = str(tmp_path / "run")

    storage.write_json(f"{run}/run.json", claim)
    assert _refusal(job, monkeypatch, capsys, *flags, "--trials", "3") == (
        f"error: {run}: another search (candidates[0].trials was 2, is 3); "
        "choose another --name, or --extend this run by what is new\n"
    )
    storage.write_json(f"{run}/run.json", claim | {"dataset": "0123456789abcdef"})
    assert _refusal(job, monkeypatch, capsys, *flags, "--trials", "2") == (
        f"error: {run}: a search on dataset 0123456789abcdef, not {fingerprint}; choose another --name, or --extend this "
        "run by what is new (its trials stay as they are, and all are trained on the new dataset)\n"
    )
    assert storage.list_names(run) == ["run.json"]
