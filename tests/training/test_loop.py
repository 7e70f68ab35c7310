import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vbd import storage
from vbd.config import VARIANTS, Family, RunOptions, TrainConfig
from vbd.data.prepared import open_dataset, read_truths
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.records import detections_from_table
from vbd.training.checkpoint import load_detector, load_tensors, read_info, whole_checkpoints
from vbd.training.loop import TrainingError, build_optimizer, choose_device, learning_rate_at, train

CPU = RunOptions(device="cpu")
SHORT = TrainConfig(
    image_size=128, steps=4, report_every=2, batch_size=2, warmup_steps=1, policy="E", learning_rate=1e-3, ema_decay=0.9
)


def _of(family: Family, **fields: Any) -> TrainConfig:
    return dataclasses.replace(SHORT, detector=family, variant=VARIANTS[family][0], **fields)


class _Reports:
    """Keeps what the loop reports, and stops the run after some reports as a lost machine would."""

    def __init__(self, folder: Path, *, stop_after: int | None = None):
        self.folder, self.stop_after, self.metrics = folder, stop_after, []

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        self.metrics.append(metrics)
        shutil.copytree(checkpoint, self.folder / str(metrics["step"]))
        if len(self.metrics) == self.stop_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("family", ["yolox", "faster_rcnn", "efficientdet"])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(family: Family, prepared: str, tmp_path: Path) -> None:
    dataset, config = open_dataset(prepared), _of(family)
    whole = _Reports(tmp_path / "whole")
    train(config, dataset, options=CPU, report=whole)
    halves = _Reports(tmp_path / "halves", stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, options=CPU, report=halves)
    halves.stop_after = None
    train(config, dataset, options=CPU, report=halves, resume_from=str(tmp_path / "halves" / "2"))

    assert [m["step"] for m in halves.metrics] == [m["step"] for m in whole.metrics] == [2, 4]
    assert [m["loss"] for m in halves.metrics] == [m["loss"] for m in whole.metrics]
    for name in ("model.pt", "state.pt"):
        one, other = (load_tensors(str(tmp_path / run / "4" / name)) for run in ("whole", "halves"))
        _assert_same(one, other)


def _assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_same(a, b)
    else:
        assert one == other


def test_a_checkpoint_loads_by_itself_and_proves_its_score(prepared: str, tmp_path: Path) -> None:
    dataset, reports = open_dataset(prepared), _Reports(tmp_path)
    metrics = train(_of("yolox", steps=40, report_every=40), dataset, options=CPU, report=reports)
    folder = str(tmp_path / "40")
    found = detections_from_table(storage.read_table(f"{folder}/out_of_fold.parquet"))
    assert evaluate(found, read_truths(dataset, 0)).map_40_findings == metrics["map_40_findings"]
    detector, info = load_detector(folder)
    assert info.dataset == dataset.fingerprint
    assert info.metrics["map_40_findings"] == metrics["map_40_findings"]
    assert not detector.training
    (prediction,) = detector(torch.zeros(1, 3, 128, 128))
    assert prediction["boxes"].shape[1] == 4


def test_no_running_mean_and_sgd_and_bf16_train_too(prepared: str, tmp_path: Path) -> None:
    config = _of("yolox", ema_decay=0.0, optimizer="sgd", precision="bf16", steps=2)
    metrics = train(config, open_dataset(prepared), options=CPU, report=_Reports(tmp_path))
    assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize("family", ["yolox", "faster_rcnn", "efficientdet"])
def test_a_loss_that_is_no_number_ends_the_run_with_its_reason(family: Family, prepared: str) -> None:
    config = _of(family, learning_rate=1e18, warmup_steps=0, optimizer="sgd", grad_clip=1e18, steps=30, report_every=1)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train(config, open_dataset(prepared), options=CPU, report=lambda *_: None)


def test_a_checkpoint_of_another_run_is_refused(prepared: str, tmp_path: Path) -> None:
    dataset = open_dataset(prepared)
    train(_of("yolox", steps=2), dataset, options=CPU, report=_Reports(tmp_path))
    folder = str(tmp_path / "2")
    with pytest.raises(InputError, match="another configuration"):
        train(_of("yolox", seed=9), dataset, options=CPU, report=_Reports(tmp_path), resume_from=folder)
    other = dataclasses.replace(dataset, fingerprint="0123456789abcdef")
    with pytest.raises(InputError, match="trained on dataset"):
        train(_of("yolox", steps=2), other, options=CPU, report=_Reports(tmp_path), resume_from=folder)


def test_a_broken_checkpoint_is_refused_in_one_line(prepared: str, tmp_path: Path) -> None:
    train(_of("yolox", steps=2), open_dataset(prepared), options=CPU, report=_Reports(tmp_path))
    folder = tmp_path / "2"
    description = storage.read_json(str(folder / "config.json"))
    weights = (folder / "model.pt").read_bytes()
    code = b"cposix\nsystem\n(S'true'\ntR."
    for data in (weights[: len(weights) // 2], b"", code):
        (folder / "model.pt").write_bytes(data)
        with pytest.raises(InputError, match=rf"model\.pt: truncated, {len(data)} of {len(weights)} bytes"):
            load_detector(str(folder))
    (folder / "model.pt").write_bytes(code.ljust(len(weights), b"."))
    with pytest.raises(InputError, match=r"model\.pt: not the file that was written beside its config\.json"):
        load_detector(str(folder))
    # An older checkpoint, which does not tell what its files should be.
    storage.write_json(str(folder / "config.json"), {k: v for k, v in description.items() if k != "files"})
    for data in (weights[: len(weights) // 2], b"", code):
        (folder / "model.pt").write_bytes(data)
        with pytest.raises(InputError, match=r"model\.pt: truncated or not a file of weights"):
            load_detector(str(folder))
    torch.save({"weight": torch.ones(1)}, folder / "model.pt")
    with pytest.raises(InputError, match="not the weights of yolox"):
        load_detector(str(folder))
    storage.write_json(str(folder / "config.json"), description | {"config_hash": "0" * 16})
    with pytest.raises(InputError, match="not the hash of its config"):
        read_info(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="not a checkpoint"):
        read_info(str(folder))


def test_only_whole_checkpoints_are_gone_on_with(prepared: str, tmp_path: Path) -> None:
    assert whole_checkpoints(str(tmp_path / "nothing")) == []
    train(_of("yolox"), open_dataset(prepared), options=CPU, report=_Reports(tmp_path))
    for number, step in enumerate(("2", "4")):
        (tmp_path / step).rename(tmp_path / f"checkpoint_00000{number}")
    older, newer = str(tmp_path / "checkpoint_000000"), str(tmp_path / "checkpoint_000001")
    (tmp_path / "checkpoint_000002").mkdir()
    assert whole_checkpoints(str(tmp_path)) == [older, newer]
    state = Path(newer, "state.pt").read_bytes()
    Path(newer, "state.pt").write_bytes(state[: len(state) // 2])
    assert whole_checkpoints(str(tmp_path)) == [older]
    Path(older, "out_of_fold.parquet").unlink()
    assert whole_checkpoints(str(tmp_path)) == []


def test_a_full_disk_leaves_no_half_checkpoint(prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vbd.training import checkpoint

    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(InputError, match="is the disk full"):
        checkpoint.write_checkpoint(
            tmp_path / "c", config=SHORT, dataset=open_dataset(prepared), weights={}, state={}, step=1, metrics={}
        )
    assert list(tmp_path.iterdir()) == []


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(100, config) == pytest.approx(0.01)


def test_biases_and_norms_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    decayed, free = build_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3
    assert [p.ndim for p in decayed["params"]] == [4]
    assert free["weight_decay"] == 0.0
    assert [p.ndim for p in free["params"]] == [1, 1, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_told() -> None:
    assert choose_device(RunOptions(device="auto")).type == "cpu"
    with pytest.raises(InputError, match="sees no GPU"):
        choose_device(RunOptions(device="cuda"))
