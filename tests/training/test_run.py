"""Training under Ray Train with real processes: what is written, and what happens when a process is killed."""

import dataclasses
import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from vbd import storage
from vbd.cluster.placement import check_workers
from vbd.config import RunOptions, TrainConfig
from vbd.data.prepared import open_dataset, read_truths
from vbd.errors import FullError, InputError, UnreachableError
from vbd.evaluation.average_precision import evaluate
from vbd.models.weights import load_tensors
from vbd.training.checkpoint import read_info
from vbd.training.folds import worker as run_worker
from vbd.training.folds.plan import TrainingPlan
from vbd.training.folds.run import _make_ready, train_plan
from vbd.training.loop import train
from vbd.training.members import read_members
from vbd.training.memory import MemoryShort

# How often Ray Train looks at its workers; read when Ray starts.
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"

CPU = RunOptions(device="cpu")
SHORT = TrainConfig(
    image_size=64, steps=6, report_every=2, batch_size=4, warmup_steps=1, policy="B", learning_rate=1e-3, ema_decay=0.5
)


@pytest.fixture(scope="module")
def learnt(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that finds something: runs that start from it have scores that tell them apart."""
    folder = tmp_path_factory.mktemp("learnt")
    config = dataclasses.replace(
        SHORT,
        steps=120,
        report_every=120,
        batch_size=8,
        policy="A",
        learning_rate=4e-3,
        warmup_steps=5,
        normal_share=0.0,
        ema_decay=0.0,
        weight_decay=0.0,
    )
    _undisturbed(config, prepared, folder)
    return str(folder / "120")


def _plan(prepared: str, *, folds: tuple[int, ...] = (0,), keep: int = 1, **fields: Any) -> TrainingPlan:
    workers = fields.pop("workers", (1, 1))
    config = dataclasses.replace(SHORT, **fields)
    return TrainingPlan({"yolox-1": config}, prepared, folds, options=CPU, workers=workers, keep=keep)


def _undisturbed(config: TrainConfig, prepared: str, folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The weights at each report of the plain loop, without Ray."""
    weights = {}

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        shutil.copytree(checkpoint, folder / str(metrics["step"]))  # type: ignore[arg-type]
        weights[metrics["step"]] = load_tensors(str(folder / str(metrics["step"]) / "model.pt"))

    train(config, open_dataset(prepared), options=CPU, report=report)
    return weights


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def _kill_the_worker_after_its_first_checkpoint(run: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoint_*/config.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join([process.name(), *process.cmdline()]):
            killed.append(process.pid)
            process.kill()


def test_a_killed_worker_starts_again_and_ends_with_the_weights_of_an_undisturbed_run(
    prepared: str, learnt: str, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, output, killed = _plan(prepared, steps=16, weights=learnt), tmp_path / "out", list[int]()
    run = output / "runs" / "yolox-1-fold0"
    killer = threading.Thread(target=_kill_the_worker_after_its_first_checkpoint, args=(run, killed))
    killer.start()
    (member,) = train_plan(plan, str(output))
    killer.join()
    assert len(killed) == 1

    weights = _undisturbed(plan.config_of("yolox-1", 0), prepared, tmp_path / "plain")
    (last,) = run.glob("checkpoint_*/")  # keep=1: the newest alone
    assert read_info(str(last)).step == 16
    _assert_same(load_tensors(str(last / "model.pt")), weights[16])
    best = read_info(str(output / "yolox-1-fold0"))
    scores = {step: read_info(str(tmp_path / "plain" / str(step))).metrics["map_40_findings"] for step in weights}
    assert best.metrics["map_40_findings"] == member.score == max(scores.values())
    assert best.step == min(step for step, score in scores.items() if score == member.score)
    _assert_same(load_tensors(str(output / "yolox-1-fold0" / "model.pt")), weights[best.step])
    assert not list(run.glob("best-*"))

    printed = capsys.readouterr().out
    assert f"yolox-1: mean map_40_findings {member.score:.4f} over 1 fold(s) (synthetic data)" in printed
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    assert train_plan(plan, str(output)) == [member]
    assert "yolox-1-fold0: finished before" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_two_workers_report_the_one_score_of_what_they_found_to_an_object_store(
    prepared: str, learnt: str, ray_session: None, s3_bucket: str
) -> None:
    output = f"{s3_bucket}/two"
    plan = _plan(prepared, workers=(2, 2), steps=8, report_every=4, folds=(1,), weights=learnt)
    (member,) = train_plan(plan, output)
    dataset = open_dataset(prepared)
    assert read_members(output, dataset) == [member]
    found = member.out_of_fold()
    assert [each.image_id for each in found] == [truth.image_id for truth in read_truths(dataset, 1)]
    assert evaluate(found, read_truths(dataset, 1)).map_40_findings == pytest.approx(member.score, abs=1e-12)
    info = read_info(f"{output}/yolox-1-fold1")
    assert info.metrics["map_40_findings"] == member.score > 0
    assert info.config == plan.config_of("yolox-1", 1)
    assert storage.read_object(f"{output}/runs/yolox-1-fold1/finished.json")["workers"] == 2


@pytest.mark.slow  # a run of Ray Train
def test_as_many_workers_start_as_there_is_room_for(prepared: str, ray_session: None, tmp_path: Path) -> None:
    train_plan(_plan(prepared, workers=(1, 3), steps=2), str(tmp_path / "elastic"))
    told = storage.read_object(str(tmp_path / "elastic" / "runs" / "yolox-1-fold0" / "finished.json"))
    assert told["workers"] == 2


@pytest.mark.slow  # three attempts at a run of Ray Train
def test_what_stops_one_worker_of_two_does_not_leave_the_other_waiting(
    prepared: str, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second worker runs out of memory in its first attempt, and finds a broken file in its second one."""
    worker = run_worker.train_worker

    def troubled(task: dict[str, Any]) -> str:
        from vbd.training.loop import TrainingRun

        gradients = TrainingRun._gradients

        def fail(self: Any, step: int, batch: Any) -> Any:
            if self.ranks.rank == 1 and self.micro_batch > 1:
                raise torch.OutOfMemoryError("no memory")
            if self.ranks.rank == 1 and step == 1:
                raise InputError("shard-00001.parquet: damaged; make it again")
            return gradients(self, step, batch)

        TrainingRun._gradients = fail  # type: ignore[method-assign]
        return worker(task)

    monkeypatch.setattr(run_worker, "train_worker", troubled)
    with pytest.raises(InputError, match=r"yolox-1-fold0: shard-00001\.parquet: damaged.*mend that"):
        train_plan(_plan(prepared, workers=(2, 2)), str(tmp_path / "out"))
    assert storage.read_json(str(tmp_path / "out" / "runs" / "yolox-1-fold0" / "micro_batch.json")) == {
        "micro_batch": 1
    }
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_more_than_a_cluster_of_fixed_size_has_is_refused_at_once(prepared: str, ray_session: None) -> None:
    with pytest.raises(InputError, match=r"3 worker\(s\) of 1 CPU each: the cluster has 2 CPU on 1 node"):
        train_plan(_plan(prepared, workers=(3, 3)), "/nowhere")
    with pytest.raises(InputError, match=r"1 worker\(s\) of 1 GPU each: the cluster has 0 GPU.*leave out --gpu"):
        check_workers(1, {"CPU": 1, "GPU": 1})
    with pytest.raises(InputError, match=r"2 worker\(s\) of 1 CPU each and 1 beside them.*--input loader"):
        check_workers(2, {"CPU": 1}, beside=1)
    check_workers(2, {"CPU": 1})
    check_workers(1, {"CPU": 1}, beside=1)


def test_a_list_of_checkpoints_that_was_cut_off_or_names_what_is_gone_does_not_end_a_run_for_ever(
    tmp_path: Path,
) -> None:
    run, snapshot = str(tmp_path), tmp_path / "checkpoint_manager_snapshot.json"
    (tmp_path / "checkpoint_1").mkdir()
    storage.write_json(f"{run}/stop.json", {"reason": "it was broken"})
    good = '{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}'
    for content, stays in ((good, True), (good[:30], False), ("", False), (good.replace("_1", "_2"), False)):
        snapshot.write_text(content)
        _make_ready(run)
        assert snapshot.exists() == stays, content
    assert storage.list_names(run) == ["checkpoint_1"]


class _Context:
    def __init__(self, world: int):
        self.world = world

    def get_world_size(self) -> int:
        return self.world

    def get_world_rank(self) -> int:
        return 0


def _task(prepared: str, folder: Path) -> dict[str, Any]:
    config, options = dataclasses.asdict(SHORT), dataclasses.asdict(CPU)
    return {"config": config, "options": options, "data": prepared, "run": str(folder / "run")}


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's function in this process, as the first of two."""
    monkeypatch.setattr(run_worker, "get_context", lambda: _Context(2))
    monkeypatch.setattr(run_worker, "_ranks", lambda: None)
    monkeypatch.setattr(run_worker.ray.train, "get_checkpoint", lambda: None)


def test_the_next_attempt_after_memory_ran_out_takes_fewer_images_at_a_time(
    prepared: str,
    two_workers: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = []

    def short_of_memory(*_: Any, micro_batch: int | None, **__: Any) -> None:
        tried.append(micro_batch)
        if micro_batch is None or micro_batch > 1:
            raise MemoryShort(micro_batch=(micro_batch or 4) // 2)

    monkeypatch.setattr(run_worker, "train", short_of_memory)
    for images in (2, 1):
        with pytest.raises(run_worker.AttemptError, match=f"memory ran out; from here {images} images at a time"):
            run_worker.train_worker(_task(prepared, tmp_path))
    assert run_worker.train_worker(_task(prepared, tmp_path)) == ""
    assert tried == [None, 2, 1]
    assert "run: memory ran out before: at most 1 images at a time on each worker" in capsys.readouterr().out


def test_a_reason_that_one_worker_of_two_finds_ends_the_next_attempt_on_all_of_them(
    prepared: str, two_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise InputError("weights.pt: truncated")

    monkeypatch.setattr(run_worker, "train", broken)
    with pytest.raises(run_worker.AttemptError, match="truncated"):
        run_worker.train_worker(_task(prepared, tmp_path))
    monkeypatch.setattr(run_worker, "train", lambda *_, **__: pytest.fail("it was tried again"))
    assert run_worker.train_worker(_task(prepared, tmp_path)) == "weights.pt: truncated"


@pytest.mark.parametrize("error", [FullError("out: no space left"), UnreachableError("s3://b: does not answer")])
def test_a_disk_that_is_full_ends_the_run_of_one_worker_with_that_line(
    error: Exception, prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(run_worker, "get_context", lambda: _Context(1))
    monkeypatch.setattr(run_worker, "train", full)
    monkeypatch.setattr(run_worker.ray.train, "get_checkpoint", lambda: None)
    assert run_worker.train_worker(_task(prepared, tmp_path)) == str(error)


def test_a_checkpoint_that_a_full_disk_does_not_take_is_that_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_worker, "get_context", lambda: _Context(1))
    monkeypatch.setattr(run_worker, "keep_if_best", lambda *_: None)
    monkeypatch.setattr(run_worker.ray.train, "report", full)
    with pytest.raises(FullError, match="run: no space left for a checkpoint; free some or choose another --output"):
        run_worker._reporter("run")({}, tmp_path)


def test_ray_train_logs_one_line_of_what_a_user_can_fix_and_the_traceback_of_other_errors(
    two_workers: None, prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.train.v2._internal.util import construct_user_exception_with_traceback

    for error in (FullError("out: no space left"), ZeroDivisionError("ours")):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(run_worker, "train", fail)
        try:
            run_worker.train_worker(_task(prepared, tmp_path))
        except Exception as raised:
            construct_user_exception_with_traceback(raised)
    one, other = caplog.messages
    assert one == "out: no space left"
    assert other.startswith("Error in training function:\nTraceback")


def test_an_error_that_returns_at_the_same_step_ends_the_run_on_all_workers(
    prepared: str, two_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        error = ValueError("few")
        error.add_note("at training step 3")
        raise error

    monkeypatch.setattr(run_worker, "train", failing)
    with pytest.raises(ValueError, match="few"):
        run_worker.train_worker(_task(prepared, tmp_path))
    with pytest.raises(run_worker.AttemptError, match=r"few \(at step 3, twice\)"):
        run_worker.train_worker(_task(prepared, tmp_path))
    assert run_worker.train_worker(_task(prepared, tmp_path)) == "ValueError: few (at step 3, twice)"
    # The next call of the job tries again: the cause may be gone.
    _make_ready(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="few"):
        run_worker.train_worker(_task(prepared, tmp_path))
