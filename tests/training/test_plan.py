import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vbd import storage
from vbd.config import RunOptions, TrainConfig
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.training.folds.plan import (
    TrainingPlan,
    claim_output,
    configs_from,
    make_plan,
    parse_folds,
    parse_workers,
    read_plan,
)
from vbd.training.members import Member, write_members
from vbd.training.settings import Settings, parse_settings

CPU = RunOptions(device="cpu")
NOTHING = Settings({}, {})


def _plan(prepared: str, *, folds: tuple[int, ...] = (0,), **fields: Any) -> TrainingPlan:
    return TrainingPlan({"yolox-1": TrainConfig(image_size=64, **fields)}, prepared, folds, options=CPU)


def test_a_plan_is_read_as_it_was_written_and_gathers_the_folds_of_its_folder(prepared: str, tmp_path: Path) -> None:
    dataset, output = open_dataset(prepared), str(tmp_path / "out")
    plan = _plan(prepared, folds=(2,), anchor_ratios=(), subset=(1, 3))
    assert claim_output(output, plan, dataset) == plan
    assert read_plan(output) == plan
    more = dataclasses.replace(plan, folds=(0,), workers=(1, 2), options=RunOptions(threads=2), keep=5)
    assert claim_output(output, more, dataset) == dataclasses.replace(more, folds=(0, 2))
    assert read_plan(output) == dataclasses.replace(more, folds=(0, 2))


def test_a_folder_of_another_training_is_refused_with_the_first_difference(prepared: str, tmp_path: Path) -> None:
    dataset, output = open_dataset(prepared), str(tmp_path / "out")
    claim_output(output, _plan(prepared), dataset)
    before = storage.read_bytes(f"{output}/train.json")
    with pytest.raises(InputError, match=r"another training \(yolox-1\.seed was 0, is 7\); choose another --output"):
        claim_output(output, _plan(prepared, seed=7), dataset)
    foreign = dataclasses.replace(dataset, fingerprint="0" * 16)
    with pytest.raises(InputError, match=f"trained on dataset {dataset.fingerprint}"):
        claim_output(output, _plan(prepared), foreign)
    assert storage.read_bytes(f"{output}/train.json") == before
    storage.write_json(str(tmp_path / "other" / "notes.json"), {})
    with pytest.raises(InputError, match="not empty and holds no training"):
        claim_output(str(tmp_path / "other"), _plan(prepared), dataset)
    with pytest.raises(InputError, match=r"no train\.json"):
        read_plan(str(tmp_path / "nowhere"))
    storage.write_json(f"{output}/train.json", {"schema": 1, "dataset": "", "configs": {}})
    with pytest.raises(InputError, match=r"configs is \{\}; want at least one config"):
        read_plan(output)


@pytest.mark.parametrize(("text", "wanted"), [("1", (1, 1)), ("4", (4, 4)), ("2-8", (2, 8))])
def test_workers_are_a_number_or_two(text: str, wanted: tuple[int, int]) -> None:
    assert parse_workers(text) == wanted


@pytest.mark.parametrize("text", ["0", "", "two", "3-2", "1-", "-2", "1-2-3", "0-4"])
def test_other_workers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--workers"):
        parse_workers(text)


def test_folds_are_those_of_the_dataset(prepared: str) -> None:
    assert parse_folds("all", prepared) == (0, 1, 2)
    assert parse_folds("2, 0", prepared) == (2, 0)
    for text in ("3", "0,0", "", "x", "0,-1"):
        with pytest.raises(InputError, match="--folds"):
            parse_folds(text, prepared)


def test_more_workers_than_images_in_a_batch_are_refused(prepared: str, tmp_path: Path) -> None:
    configs = {"yolox-1": TrainConfig(batch_size=4)}
    flags: dict[str, Any] = {"output": str(tmp_path / "out"), "data": prepared, "folds": "0", "options": CPU, "keep": 1}
    assert make_plan(configs, NOTHING, workers="1-4", **flags).workers == (1, 4)
    with pytest.raises(InputError, match="--workers 1-5: more than the 4 images of a batch of yolox-1"):
        make_plan(configs, NOTHING, workers="1-5", **flags)


def test_each_fold_may_start_from_weights_of_its_own(prepared: str, tmp_path: Path) -> None:
    (tmp_path / "w0.pt").touch()
    settings = parse_settings([], weights=str(tmp_path / "w{fold}.pt"))
    flags: dict[str, Any] = {
        "output": str(tmp_path / "out"),
        "data": prepared,
        "workers": "1",
        "options": CPU,
        "keep": 1,
    }
    plan = make_plan({"yolox-1": TrainConfig()}, settings, folds="0", **flags)
    assert plan.config_of("yolox-1", 0).weights == str(tmp_path / "w0.pt")
    with pytest.raises(InputError, match=r"w1\.pt: no such file"):
        make_plan({"yolox-1": TrainConfig()}, settings, folds="0,1", **flags)


def test_a_second_stage_starts_each_fold_from_its_best_checkpoint(prepared: str, tmp_path: Path) -> None:
    """A finished training of two configurations, without the training."""
    dataset, root = open_dataset(prepared), str(tmp_path / "first")
    first = _plan(prepared, folds=(0, 2), steps=400, pretrained=True)
    claim_output(root, first, dataset)
    with pytest.raises(InputError, match=r"no manifest\.json"):
        configs_from("", root, parse_settings([]), data="")
    folders = tuple(f"{root}/yolox-1-fold{fold}" for fold in (0, 2))
    for folder in folders:
        storage.write_json(f"{folder}/config.json", {})
    write_members(root, [Member("yolox-1", "yolox-1", 0.1, folders)], dataset.fingerprint, synthetic=True)

    settings = parse_settings(["subset=1,12", "report_every=5"])
    configs, data = configs_from("", root, settings, data="")
    plan = make_plan(
        configs, settings, output=str(tmp_path / "second"), data=data, folds="0,2", workers="1", options=CPU, keep=1
    )
    config = plan.config_of("yolox-1", 2)
    assert config.weights == f"{root}/yolox-1-fold2"
    assert (config.steps, config.warmup_steps, config.report_every, config.subset) == (40, 2, 5, (1, 12))
    assert config.learning_rate == pytest.approx(1e-3 / 20)
    assert not config.pretrained
    with pytest.raises(InputError, match=r"yolox-1-fold1: no such file or folder"):
        make_plan(
            configs, settings, output=str(tmp_path / "second"), data=data, folds="all", workers="1", options=CPU, keep=1
        )
