import dataclasses
import functools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.runs import CPU, Reports, assert_same, batch_of, config_of, new_run, state_of
from vbd import storage
from vbd.config import FAMILIES, Family, RunOptions, TrainConfig
from vbd.data.prepared import open_dataset, read_truths
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.models import build_detector
from vbd.models.weights import FirstWeights, load_tensors
from vbd.models.yolox import YOLOX
from vbd.records import detections_from_table
from vbd.training.checkpoint import load_detector, read_info
from vbd.training.loop import Ranks, TrainingError, train

ROOT = Path(__file__).parents[2]


def _assert_same_end(one: Path, other: Path) -> None:
    """Two runs ended with equal weights, statistics and optimisers, and reported the same loss."""
    for name in ("model.pt", "state.pt"):
        assert_same(load_tensors(str(one / "4" / name)), load_tensors(str(other / "4" / name)), name)
    assert read_info(str(one / "4")).metrics["loss"] == read_info(str(other / "4")).metrics["loss"]


def _assert_resumes_exactly(config: TrainConfig, prepared: str, folder: Path, options: RunOptions = CPU) -> None:
    dataset = open_dataset(prepared)
    whole, rest = Reports(folder / "whole"), Reports(folder / "rest")
    train(config, dataset, options=CPU, report=whole)
    train(config, dataset, options=options, report=rest, resume_from=str(folder / "whole" / "2"))
    assert [[m["step"] for m in reports.metrics] for reports in (whole, rest)] == [[2, 4], [4]]
    _assert_same_end(whole.folder, rest.folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(family: Family, prepared: str, tmp_path: Path) -> None:
    _assert_resumes_exactly(config_of(family), prepared, tmp_path)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"batch_size": 4, "accumulate": 2, "multi_scale": 0.5, "optimizer": "sgd", "ema_decay": 0.0}, CPU),
        ({"backbone_rate": 0.0}, CPU),
        ({"backbone_rate": 0.1, "precision": "bf16", "agreement_weight": 1.0}, CPU),
        ({}, dataclasses.replace(CPU, loader_workers=2)),
    ],
    ids=["in parts at several scales without a mean", "frozen backbone", "slow backbone", "other loader"],
)
def test_a_run_resumes_exactly_however_it_trains(
    fields: dict[str, Any], options: RunOptions, prepared: str, tmp_path: Path
) -> None:
    _assert_resumes_exactly(config_of("yolox", **fields), prepared, tmp_path, options)


_GO_ON = """
import json, sys
from pathlib import Path
from tests.training.runs import CPU, Reports
from vbd.config import train_config_from
from vbd.data.prepared import open_dataset
from vbd.training.loop import train

config, prepared, folder = json.loads(sys.argv[1]), *sys.argv[2:]
report = Reports(Path(folder))
train(train_config_from(config), open_dataset(prepared), options=CPU, report=report, resume_from=f"{folder}/2")
"""


def test_a_run_that_was_stopped_goes_on_in_another_process_as_if_it_never_had_been(
    prepared: str, tmp_path: Path
) -> None:
    config, dataset = config_of("yolox"), open_dataset(prepared)
    train(config, dataset, options=CPU, report=Reports(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, options=CPU, report=Reports(tmp_path / "halves", stop_after=1))
    assert not (tmp_path / "halves" / "4").exists()
    arguments = [json.dumps(dataclasses.asdict(config)), prepared, str(tmp_path / "halves")]
    subprocess.run([sys.executable, "-c", _GO_ON, *arguments], cwd=ROOT, check=True)
    _assert_same_end(tmp_path / "whole", tmp_path / "halves")


def test_a_compiled_run_leaves_the_checkpoints_of_any_other(
    prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, compiler = [], functools.partial(torch.compile, backend="eager")  # which compiles nothing, but traces
    monkeypatch.setattr(torch, "compile", lambda *args, **options: calls.append(args) or compiler(*args, **options))
    config, compiled = config_of("yolox"), dataclasses.replace(CPU, compile=True)
    train(config, open_dataset(prepared), options=compiled, report=Reports(tmp_path / "compiled"))
    assert len(calls) == 1
    plain = build_detector("yolox", variant=config.variant, image_size=config.image_size)
    for tensors in (
        load_tensors(str(tmp_path / "compiled" / "4" / "model.pt")),
        load_tensors(str(tmp_path / "compiled" / "4" / "state.pt"))["detector"],
    ):
        assert tensors.keys() == plain.state_dict().keys()  # no `_orig_mod.` in between
    report = Reports(tmp_path / "plain")
    train(config, open_dataset(prepared), options=CPU, report=report, resume_from=str(tmp_path / "compiled" / "2"))
    _assert_same_end(tmp_path / "plain", tmp_path / "compiled")


def test_a_run_that_goes_on_fetches_no_first_weights(
    prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(_: YOLOX, variant: str) -> FirstWeights:
        fetched.append(variant)
        return FirstWeights("COCO", ("a",), ("b", "c"), ())

    monkeypatch.setattr(YOLOX, "_load_coco", fetch)
    config, dataset = config_of("yolox", pretrained=True), open_dataset(prepared)
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, options=CPU, report=Reports(tmp_path, stop_after=1))
    assert fetched == ["nano"]
    train(config, dataset, options=CPU, report=Reports(tmp_path), resume_from=str(tmp_path / "2"))
    assert fetched == ["nano"]
    told = {"source": "COCO", "loaded": 1, "new": 2, "unused": 0}
    assert [read_info(str(tmp_path / step)).first_weights for step in ("2", "4")] == [told, told]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_backbone_stays_as_it_was_and_the_rest_learns(family: Family, prepared: str) -> None:
    """Its weights and its batch statistics."""
    config = config_of(family, backbone_rate=0.0)
    run = new_run(config, prepared)
    backbone = next(name for name, module in run.detector.named_modules() if module is run.detector.backbone)
    before = state_of(run)
    for step in range(2):
        run.step(step, batch_of(config, prepared, step))
    after = state_of(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if name.startswith(f"{backbone}.")]
    assert [name for name in before if name.startswith(f"{backbone}.")]


def test_agreement_weighs_boxes_in_the_loss(prepared: str) -> None:
    """Of the first step, whose boxes not all readers drew."""
    losses = []
    for exponent in (0.0, 1.0, 4.0):
        config = config_of("yolox", batch_size=4, agreement_weight=exponent)
        batch = batch_of(config, prepared, 0)
        if exponent:
            assert min(target["weights"].min() for target in batch.targets if len(target["weights"])) < 1
        losses.append(new_run(config, prepared).step(0, batch)[0])
    assert losses[0] > losses[1] > losses[2]


def test_several_scales_reach_the_detector(prepared: str) -> None:
    sides = []

    class Watched(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor, targets: Any) -> Any:
            sides.append(tuple(images.shape[2:]))
            return self.model(images, targets)

    config = config_of("yolox", multi_scale=0.5, steps=12)
    run = new_run(config, prepared, ranks=Ranks(wrap=Watched))
    for step in range(12):
        run.step(step, batch_of(config, prepared, 0))
    assert set(sides) == {(32, 32), (64, 64), (96, 96)}


def test_a_gradient_is_clipped_and_reported_unclipped(prepared: str) -> None:
    fields = {"optimizer": "sgd", "weight_decay": 0.0, "learning_rate": 1.0, "warmup_steps": 0, "ema_decay": 0.0}
    norms, moved = [], []
    for clip in (1e-4, 1e9):
        config = config_of("yolox", grad_clip=clip, **fields)
        run = new_run(config, prepared)
        before = [weight.detach().clone() for weight in run.weights]
        norms.append(run.step(0, batch_of(config, prepared, 0))[1])
        changes = [(weight - old).flatten() for weight, old in zip(run.weights, before, strict=True)]
        moved.append(torch.cat(changes).norm().item())
    assert norms[0] == norms[1] > 1
    # Nesterov's first step is 1.9 times the gradient.
    assert moved == pytest.approx([1.9 * 1e-4, 1.9 * norms[1]], rel=0.01)


def test_a_run_uses_the_threads_and_the_layout_that_it_is_told(prepared: str) -> None:
    config, losses = config_of("retinanet"), []
    threads = torch.get_num_threads()
    try:
        for number, layout in ((2, False), (1, True)):
            run = new_run(config, prepared, options=RunOptions(device="cpu", threads=number, channels_last=layout))
            assert torch.get_num_threads() == number
            kernels = [weight for weight in run.weights if weight.ndim == 4 and weight.shape[1] > 1 < weight.shape[2]]
            assert {k.is_contiguous(memory_format=torch.channels_last) for k in kernels} == {layout}
            losses.append(run.step(0, batch_of(config, prepared, 0))[0])
    finally:
        torch.set_num_threads(threads)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_checkpoint_loads_by_itself_and_proves_its_score(prepared: str, tmp_path: Path) -> None:
    dataset, reports = open_dataset(prepared), Reports(tmp_path)
    metrics = train(config_of("yolox", image_size=128, steps=40, report_every=40), dataset, options=CPU, report=reports)
    folder = str(tmp_path / "40")
    found = detections_from_table(storage.read_table(f"{folder}/out_of_fold.parquet"))
    assert evaluate(found, read_truths(dataset, 0)).map_40_findings == metrics["map_40_findings"]
    detector, info = load_detector(folder)
    assert info.dataset == dataset.fingerprint
    assert info.metrics["map_40_findings"] == metrics["map_40_findings"]
    assert not detector.training
    (prediction,) = detector(torch.zeros(1, 3, 128, 128))
    assert prediction["boxes"].shape[1] == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_that_is_no_number_ends_the_run_with_its_reason(
    family: Family, prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbd.training.loop.check_train_config", lambda config: None)  # no such rate passes it
    fields = {"learning_rate": 1e18, "warmup_steps": 0, "optimizer": "sgd", "grad_clip": 1e18}
    config = config_of(family, **fields, steps=30, report_every=30)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train(config, open_dataset(prepared), options=CPU, report=lambda *_: None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_whose_gradient_is_no_number_changes_nothing(family: Family, prepared: str) -> None:
    config = config_of(family)
    run, batch = new_run(config, prepared), batch_of(config, prepared, 0)
    run.step(0, batch)
    before, mean = state_of(run), {k: v.clone() for k, v in run.best_model.state_dict().items()}
    images = batch.images.contiguous().clone()
    images[0, :, 20:30, 20:30] = math.nan
    with pytest.raises(TrainingError, match="no finite number at step 1"):
        run.step(1, dataclasses.replace(batch, images=images))
    assert_same(before, state_of(run))
    assert_same(mean, dict(run.best_model.state_dict()))


def test_a_checkpoint_of_another_run_is_refused(prepared: str, tmp_path: Path) -> None:
    dataset, config = open_dataset(prepared), config_of("yolox", steps=2)
    train(config, dataset, options=CPU, report=Reports(tmp_path))
    folder = str(tmp_path / "2")
    with pytest.raises(InputError, match="another configuration"):
        train(config_of("yolox", seed=9), dataset, options=CPU, report=Reports(tmp_path), resume_from=folder)
    other = dataclasses.replace(dataset, fingerprint="0123456789abcdef")
    with pytest.raises(InputError, match="trained on dataset"):
        train(config, other, options=CPU, report=Reports(tmp_path), resume_from=folder)
