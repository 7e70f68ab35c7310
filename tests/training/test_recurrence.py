from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError

from tests.training.runs import CPU, Reports, config_of
from vbd.data.prepared import open_dataset
from vbd.errors import StoreError
from vbd.training.loop import TrainingRun, train
from vbd.training.recurrence import forget, in_brief, is_repeatable, returned, step_noted


def _error_at(step: int | None, error: Exception) -> Exception:
    """The error as an attempt raises it."""
    if step is None:
        return error
    with pytest.raises(type(error)) as raised, step_noted(lambda: step):
        raise error
    return raised.value


def _ends(folder: Path, step: int | None, error: Exception, **more: Any) -> str:
    return returned(str(folder), _error_at(step, error), **more)


def test_the_same_error_at_the_same_step_ends_the_run_at_its_second_attempt(tmp_path: Path) -> None:
    assert _ends(tmp_path, 12, ValueError("too few\nvalues")) == ""
    assert _ends(tmp_path, 12, ValueError("too few\nimages")) == "ValueError: too few (at step 12, twice)"
    assert _ends(tmp_path, None, ValueError("none")) == ""
    assert _ends(tmp_path, None, ValueError("none")) == "ValueError: none (before the first step, twice)"


def test_another_error_another_step_or_another_rank_is_another_attempts(tmp_path: Path) -> None:
    assert _ends(tmp_path, 12, ValueError("few")) == ""
    assert _ends(tmp_path, 13, ValueError("few")) == ""
    assert _ends(tmp_path, 13, TypeError("few")) == ""
    assert _ends(tmp_path, 13, TypeError("many")) == ""
    assert _ends(tmp_path, 13, TypeError("many"), rank=1) == ""  # of the same attempt
    assert _ends(tmp_path, 13, TypeError("many"), rank=1) != ""


def test_what_lies_in_the_surroundings_is_tried_again(tmp_path: Path) -> None:
    for error in (
        StoreError("s3: away"),
        ConnectionResetError("by peer"),
        MemoryError("no memory"),
        RayActorError(),
        RuntimeError("[third_party/gloo/transport/tcp/pair.cc] Connection closed by peer"),
        torch.distributed.DistNetworkError("connection refused"),
    ):
        for _ in range(3):
            assert _ends(tmp_path, 1, error) == ""
    assert not is_repeatable(SystemExit(1))
    replaced = RuntimeError("release unlocked lock")  # by which a lock replaces the exception that ends a process
    replaced.__context__ = SystemExit(1)
    assert not is_repeatable(replaced)


def test_errors_of_an_earlier_session_are_forgotten(tmp_path: Path) -> None:
    assert _ends(tmp_path, 12, ValueError("few")) == ""
    (tmp_path / "trial.json").touch()
    forget(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["trial.json"]
    assert _ends(tmp_path, 12, ValueError("few")) == ""


def test_an_error_without_words_is_named_by_its_type() -> None:
    assert in_brief(KeyError()) == "KeyError"


def test_training_notes_the_step_of_an_error(prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step_of = TrainingRun.step

    def failing(run: TrainingRun, step: int, batch: Any) -> Any:
        if step == 1:
            raise ValueError("few")
        return step_of(run, step, batch)

    monkeypatch.setattr(TrainingRun, "step", failing)

    def attempt() -> str:
        with pytest.raises(ValueError, match="few") as error:
            train(config_of("yolox"), open_dataset(prepared), options=CPU, report=Reports(tmp_path / "reports"))
        return returned(str(tmp_path), error.value)

    assert attempt() == ""
    assert attempt() == "ValueError: few (at step 1, twice)"
