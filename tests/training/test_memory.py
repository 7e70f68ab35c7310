"""Memory that runs out: the step is done again in smaller parts, as if it had never been tried."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.training.runs import CPU, Reports, assert_same, batch_of, config_of, new_run
from vbd.config import TrainConfig
from vbd.data.prepared import open_dataset
from vbd.models.weights import load_tensors
from vbd.models.yolox import YOLOX
from vbd.training.checkpoint import read_info
from vbd.training.loop import Ranks, TrainingError, TrainingRun, train
from vbd.training.memory import MemoryShort, is_memory_error, peak_memory_mb
from vbd.training.parts import side_at

Limit = Callable[..., list[int]]


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Says how many images YOLOX has room for; more go through it, as far as the end of the forward pass, and fail then.

    The list that it returns fills with how many went through at a time.
    """
    forward = YOLOX.forward

    def limit(images_at_a_time: int, *, error: Exception | None = None) -> list[int]:
        seen = list[int]()

        def limited(self: YOLOX, images: torch.Tensor, targets: Any = None) -> Any:
            result = forward(self, images, targets)
            seen.append(len(images))
            if len(images) > images_at_a_time:
                raise error or torch.OutOfMemoryError("CUDA out of memory")
            return result

        monkeypatch.setattr(YOLOX, "forward", limited)
        return seen

    return limit


def _weights(config: TrainConfig, prepared: str, folder: Path) -> dict[str, Any]:
    """Of the run's last checkpoint, statistics and optimiser too."""
    train(config, open_dataset(prepared), options=CPU, report=Reports(folder))
    state = load_tensors(str(folder / str(config.steps) / "state.pt"))
    return {"mean": load_tensors(str(folder / str(config.steps) / "model.pt"))} | {
        name: state[name] for name in ("detector", "optimizer", "averaged")
    }


@pytest.mark.parametrize(("room", "parts"), [(2, 3), (1, 5)])
def test_a_run_short_of_memory_is_one_that_goes_in_as_many_parts(
    room: int, parts: int, prepared: str, tmp_path: Path, room_for: Limit
) -> None:
    """Nothing is left of the failed attempts: no gradient, no batch statistics, no random numbers."""
    fields: dict[str, Any] = {"batch_size": 5, "steps": 2}
    expected = _weights(config_of("yolox", accumulate=parts, **fields), prepared, tmp_path / "parts")
    tried = room_for(room)
    assert_same(_weights(config_of("yolox", **fields), prepared, tmp_path / "short"), expected)
    # Dealt like cards: 5, then 3 + 2, then 2 + 2 + 1 images.
    assert tried[:3] == [5, 3, 2]
    assert max(tried[3:]) == room
    assert expected["detector"]["network.backbone.backbone.stem.conv.bn.num_batches_tracked"] == 2 * parts


def test_a_step_that_fails_in_its_last_part_forgets_the_first_ones(
    prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("yolox", batch_size=4, accumulate=2)
    batches = [batch_of(config, prepared, step) for step in range(2)]

    def stepped(run: TrainingRun, failing_call: int) -> Any:
        calls, forward = [], YOLOX.forward

        def limited(self: YOLOX, images: torch.Tensor, targets: Any = None) -> Any:
            calls.append(len(images))
            result = forward(self, images, targets)
            if len(calls) == failing_call:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return result

        run.step(0, batches[0])
        with monkeypatch.context() as patch:
            patch.setattr(YOLOX, "forward", limited)
            if not failing_call:
                run.micro_batch = 1
            run.step(1, batches[1])
        assert calls == ([2, 2] if failing_call else []) + [1] * 4
        return [run.detector.state_dict(), run.best_model.state_dict(), run.optimizer.state_dict()]

    assert_same(stepped(new_run(config, prepared), 2), stepped(new_run(config, prepared), 0))


def test_memory_that_runs_out_in_the_validation_alone_changes_nothing_that_is_found(
    prepared: str, room_for: Limit
) -> None:
    config = config_of("yolox", batch_size=4)
    run = new_run(config, prepared)
    for objectness in run.best_model.network.head.obj_preds:
        torch.nn.init.zeros_(objectness.bias)  # it finds something, if only noise
    scores, found = run.validate()
    tried = room_for(3)
    scores_again, found_again = run.validate()
    assert scores_again == pytest.approx(scores, nan_ok=True)
    assert [each.image_id for each in found_again] == [each.image_id for each in found]
    assert sum(len(each.boxes) for each in found) > 0
    for one, other in zip(found, found_again, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
    assert tried[0] == 4
    assert max(tried[1:]) == run.micro_batch == 2


def test_images_that_do_not_even_fit_one_at_a_time_end_the_run(prepared: str, room_for: Limit) -> None:
    config, told = config_of("yolox", batch_size=4), []
    tried = room_for(0)
    run = new_run(config, prepared, say=told.append)
    with pytest.raises(TrainingError, match="out of memory at step 0 with one image at a time; lower image_size"):
        run.step(0, batch_of(config, prepared, 0))
    assert tried == [4, 2, 1]
    assert told == [
        "out of memory at step 0 with 4 images at a time; from here on 2",
        "out of memory at step 0 with 2 images at a time; from here on 1",
    ]


@pytest.mark.parametrize(("batch_size", "tries"), [(4, [4, 2]), (3, [3]), (5, [5, 3])])
def test_it_never_halves_below_what_the_network_can_be_trained_on(
    batch_size: int, tries: list[int], prepared: str, room_for: Limit
) -> None:
    config = config_of("yolox", batch_size=batch_size, image_size=32)
    tried = room_for(0)
    run = new_run(config, prepared)
    with pytest.raises(TrainingError) as error:
        run.step(0, batch_of(config, prepared, 0))
    assert tried == tries
    assert str(error.value) == (
        f"out of memory at step 0 with {tries[-1]} images at a time, and yolox nano needs 2 at this size; lower image_size or "
        "multi_scale, or use a smaller variant"
    )


def test_several_scales_halve_further_at_the_larger_sides(prepared: str, room_for: Limit) -> None:
    config = config_of("yolox", batch_size=4, image_size=64, multi_scale=0.5)
    run = new_run(config, prepared)
    sides = [side_at(step, config) for step in range(20)]
    large, small = sides.index(96), sides.index(32)
    tried = room_for(1)
    run.step(large, batch_of(config, prepared, large))
    assert tried == [4, 2, 1, 1, 1, 1]
    tried = room_for(2)
    run.step(small, batch_of(config, prepared, small))
    assert run.micro_batch == 1  # but two of the smallest images go through at a time
    assert tried == [2, 2]


@pytest.mark.parametrize(("batch_size", "share", "halved"), [(8, 4, 2), (5, 3, 2)])
def test_one_of_several_ranks_that_is_short_asks_all_to_start_again_with_half(
    batch_size: int, share: int, halved: int, prepared: str, room_for: Limit
) -> None:
    config = config_of("yolox", batch_size=batch_size)
    tried = room_for(0)
    run = new_run(config, prepared, ranks=Ranks(rank=0, world=2))
    batch = batch_of(config, prepared, 0)
    with pytest.raises(MemoryShort, match=f"start again with {halved} image") as short:
        run.step(0, _first(batch, share))
    assert short.value.micro_batch == halved
    assert tried == [share]
    again = new_run(config, prepared, ranks=Ranks(rank=0, world=2), micro_batch=short.value.micro_batch)
    assert again.micro_batch == halved


def _first(batch: Any, images: int) -> Any:
    return type(batch)(batch.image_ids[:images], batch.images[:images], batch.targets[:images])


def test_how_many_images_fit_is_kept_and_used_by_a_run_that_goes_on(
    prepared: str, tmp_path: Path, room_for: Limit
) -> None:
    config, dataset = config_of("yolox", batch_size=4), open_dataset(prepared)
    room_for(2)
    metrics = train(config, dataset, options=CPU, report=Reports(tmp_path))
    assert load_tensors(str(tmp_path / "2" / "state.pt"))["micro_batch"] == 2
    assert read_info(str(tmp_path / "2")).micro_batch == metrics["micro_batch"] == 2
    tried = room_for(4)
    train(config, dataset, options=CPU, report=Reports(tmp_path / "again"), resume_from=str(tmp_path / "2"))
    assert max(tried) == 2
    tried.clear()
    # Whoever starts the run again may know of less room still.
    run = new_run(config, prepared, is_new=False, micro_batch=1)
    run.resume(str(tmp_path / "2"))
    assert run.micro_batch == 1


def test_other_errors_are_not_tried_again(prepared: str, room_for: Limit) -> None:
    config = config_of("yolox", batch_size=4)
    tried = room_for(0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        new_run(config, prepared).step(0, batch_of(config, prepared, 0))
    assert tried == [4]


def test_an_optimiser_without_memory_for_its_state_ends_the_run(prepared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("yolox")
    run = new_run(config, prepared)

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.optimizer, "step", short)
    with pytest.raises(TrainingError, match="out of memory at step 0 for the optimiser's state"):
        run.step(0, batch_of(config, prepared, 0))


def test_memory_errors_are_known_in_every_spelling() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_memory_error(real.value)
    assert is_memory_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    for told in ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"):
        assert is_memory_error(RuntimeError(told))
    for told in ("CUDA error: device-side assert triggered", "mat1 and mat2 shapes cannot be multiplied"):
        assert not is_memory_error(RuntimeError(told))


def test_the_most_memory_that_was_used_is_told_in_mib() -> None:
    held = torch.ones(2**24)  # 64 MiB
    in_use = psutil.Process().memory_info().rss / 2**20
    assert 0.95 * in_use < peak_memory_mb(torch.device("cpu")) < psutil.virtual_memory().total / 2**20
    assert len(held)
