"""Devices, arithmetic, and what happens to a step whose numbers are none."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.runs import CPU, Reports, assert_same, batch_of, config_of, new_run, state_of
from vbd.config import RunOptions, TrainConfig
from vbd.data.batches.make import training_batches
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.models.weights import load_tensors
from vbd.records import Batch
from vbd.training import loop
from vbd.training.loop import TrainingError, train
from vbd.training.precision import autocast, choose_device, gradient_scaler, telling

DEVICE = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_told() -> None:
    assert choose_device(RunOptions(device="auto")).type == "cpu"
    with pytest.raises(InputError, match="sees no GPU"):
        choose_device(RunOptions(device="cuda"))


def test_the_forward_pass_has_the_arithmetic_of_the_config() -> None:
    layer, values = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(DEVICE, TrainConfig(precision=precision)):
            assert layer(values).dtype == dtype
        assert not gradient_scaler(DEVICE, TrainConfig(precision=precision)).is_enabled()
    with pytest.raises(InputError, match="fp16 needs a GPU; use bf16 or fp32"):
        autocast(DEVICE, TrainConfig(precision="fp16"))


@pytest.mark.parametrize("statistics", [[], [torch.tensor([1e30, -2.0]), torch.tensor(0.0)]])
def test_a_loss_among_numbers_keeps_its_value_and_gradient_to_the_last_bit(statistics: list[torch.Tensor]) -> None:
    weight = torch.tensor(0.3, requires_grad=True)
    loss = telling(weight * 7, statistics)
    loss.backward()
    assert loss.item() == (torch.tensor(0.3) * 7).item()
    assert weight.grad == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_statistic_that_is_no_number_spoils_the_gradient_of_a_loss_that_is_one(value: float) -> None:
    weight = torch.tensor(0.3, requires_grad=True)
    telling(weight * 7, [torch.ones(3), torch.tensor([0.0, value])]).backward()
    assert not torch.isfinite(weight.grad)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_has_a_gradient_that_is_none(value: float) -> None:
    weight = torch.tensor(0.3, requires_grad=True)
    telling(weight * 7 + value, [torch.ones(3)]).backward()  # by itself the gradient would be 7
    assert not torch.isfinite(weight.grad)


def _spoilt(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=torch.full_like(batch.images.contiguous(), math.nan))


@pytest.fixture
def fp16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler of fp16, from a scale of 4 on, with fp32's numbers: scales are powers of two and change no bit of them."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        loop, "gradient_scaler", lambda *_: scaler("cpu", init_scale=4.0, growth_interval=2, enabled=True)
    )


def test_in_fp16_a_step_without_numbers_is_skipped_as_if_it_had_never_been(
    prepared: str, request: pytest.FixtureRequest
) -> None:
    config = config_of("yolox")
    plain = new_run(config, prepared)
    request.getfixturevalue("fp16_on_a_cpu")
    scaled = new_run(config, prepared)
    before = state_of(scaled)
    loss, norm = scaled.step(0, _spoilt(batch_of(config, prepared, 0)))
    assert math.isnan(loss)
    assert math.isnan(norm)
    assert_same(state_of(scaled), before)
    assert scaled.scaler.get_scale() == 2
    for step in (1, 2):
        batch = batch_of(config, prepared, step)
        assert scaled.step(step, batch) == plain.step(step, batch)
    assert scaled.scaler.get_scale() == 4  # after two good steps it grows again
    assert_same(state_of(scaled), state_of(plain))
    assert_same(dict(scaled.best_model.state_dict()), dict(plain.best_model.state_dict()))


def test_in_fp16_a_run_ends_when_no_scale_gives_numbers(prepared: str, fp16_on_a_cpu: None) -> None:
    config = config_of("yolox")
    run, batch = new_run(config, prepared), _spoilt(batch_of(config, prepared, 0))
    before = state_of(run)
    for step, scale in enumerate((2, 1)):
        run.step(step, batch)
        assert run.scaler.get_scale() == scale
    with pytest.raises(TrainingError, match="gradient is no finite number at step 2"):
        run.step(2, batch)
    assert_same(state_of(run), before)


def test_the_scale_of_fp16_is_kept_for_a_run_that_goes_on(prepared: str, fp16_on_a_cpu: None, tmp_path: Path) -> None:
    config, dataset = config_of("yolox"), open_dataset(prepared)

    def batches(*args: Any, first_step: int, **options: Any) -> Iterator[Batch]:
        good: Iterable[Batch] = training_batches(*args, first_step=first_step, **options)
        for step, batch in enumerate(good, start=first_step):
            yield _spoilt(batch) if step == 1 else batch

    whole, rest = Reports(tmp_path / "whole"), Reports(tmp_path / "rest")
    train(config, dataset, options=CPU, report=whole, batches=batches)
    train(config, dataset, options=CPU, report=rest, batches=batches, resume_from=str(tmp_path / "whole" / "2"))
    # A good step, a spoilt one that makes the good ones count anew, and two good ones: the scale has grown again.
    middle, end = (load_tensors(str(tmp_path / "whole" / step / "state.pt")) for step in ("2", "4"))
    assert [(state["scaler"]["scale"], state["averaged"]) for state in (middle, end)] == [(2, 1), (4, 3)]
    assert middle["scaler"]["_growth_tracker"] == 0
    assert_same(load_tensors(str(tmp_path / "rest" / "4" / "state.pt")), end)
    assert math.isfinite(whole.metrics[0]["loss"])  # of the good step alone
