"""Files of vbd that were edited or damaged: each is read as before, or refused in one line that names it."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ensemble.kept import good_members, write_dataset, write_kept
from tests.reports.searches import search_of, write_trials
from vbd import storage
from vbd.config import RunOptions, TrainConfig
from vbd.config.presets import preset_of
from vbd.data.prepared import open_dataset, read_truths
from vbd.ensemble.normal.gates import Gate
from vbd.ensemble.normal.no_finding import NoFinding
from vbd.ensemble.recipe import Recipe, read_recipe
from vbd.ensemble.scores.calibrate import Calibration
from vbd.ensemble.scores.curves import Curve, Losses
from vbd.errors import InputError
from vbd.fusion.detections import FIELD_THRESHOLDS, FusionOptions
from vbd.predict.parts import Output
from vbd.predict.request import name_checkpoints
from vbd.records import Detections
from vbd.reports.search.tables import ensemble
from vbd.search.cost.forecast import Actual, Devices, Record, actual, forecast, read_record, write_record
from vbd.search.cost.rates import Rate, combination_of, rate_of, rates_of
from vbd.search.kept.claim import check_run_folder, read_claim
from vbd.search.kept.leaderboard import Leaderboard, format_leaderboard, ranked, read_leaderboard, write_leaderboard
from vbd.search.kept.trial import read_trials
from vbd.training.checkpoint import read_info
from vbd.training.folds.best import best_of
from vbd.training.folds.plan import TrainingPlan, claim_output, read_plan

_DEEP = "[" * 200_000
# What a field is replaced by, as JSON; besides, each is deleted.
EDITS = (
    *("null", "true", '"x"', '""', '"../../x"', '"/x"', "-1", "-0.5", "0", "5", "1.5"),
    *("1e300", "1e999", "9" * 400, "NaN", "-Infinity", "[]", "{}", '[[["x"]]]', '{"x": {"x": 1}}', '"bmp"'),
)
MARK = "<edited>"
_FOUND = good_members()["yolox-1"]


def edited(value: Any) -> Iterator[Any]:
    """The value with each of its fields, and the first item of each list, marked; a deleted one is left out."""
    yield MARK
    if isinstance(value, dict):
        for name, item in value.items():
            yield {other: kept for other, kept in value.items() if other != name}
            for changed in edited(item):
                yield value | {name: changed}
    if isinstance(value, list) and value:
        for changed in edited(value[0]):
            yield [changed, *value[1:]]


def variants(text: str) -> Iterator[str]:
    """The text of a JSON file with one edit each; a field gets every third kind of edit, the next field the next ones."""
    yield from ("", "{", "[]", "5", "null", _DEEP, "\x00")
    for number, changed in enumerate(edited(json.loads(text))):
        marked = json.dumps(changed)
        if f'"{MARK}"' not in marked:
            yield marked
        else:
            yield from (marked.replace(f'"{MARK}"', edit) for edit in EDITS[number % 3 :: 3])
    yield text.replace("{", f'{{"unknown": {_DEEP}', 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and beside it a search, an ensemble and a training, each with all of its files."""
    root = tmp_path_factory.mktemp("files")
    data = write_dataset(root / "data")
    dataset, run = open_dataset(data), str(root / "run")
    trials = search_of(2)
    write_trials(run, trials, dataset=dataset.fingerprint)
    write_leaderboard(run, Leaderboard("smoke", dataset.fingerprint, True, ranked(trials)))
    rates = {combination_of(trials[0].config): Rate(0.5, 3.0, 7.0)}
    before = forecast([trials[0].config], [], rates, search=preset_of("smoke"), devices=Devices("CPU", 2, 1), price=1.0)
    write_record(run, Record(before, rates, Actual(1.0, 20.0, 0.5, 1.5)))
    write_kept(root / "run", data, {"yolox-1": _FOUND})
    losses = {"beta": Losses(0.1, 0.2)}
    curve = Curve("beta", coefficients=(1.0, 1.0, 0.0), losses=losses)  # type: ignore[arg-type]
    recipe = Recipe(
        weights={"yolox-1": 1.0},
        options=FusionOptions(iou_threshold=FIELD_THRESHOLDS),
        calibrations={"yolox-1": Calibration(curve, {3: Curve("isotonic", (0.1, 0.9), (0.2, 0.8))})},
        classifiers=(),
        no_finding=NoFinding("boxes", (1.0, 1.0), 0.0),
        gate=Gate("damp", 0.5),
    )
    scores = {"map_40_findings": 0.4, "map_40": 0.5, "per_class": {"ILD": 0.1, "Nodule/Mass": math.nan}}
    interval = {"estimate": 0.1, "low": 0.0, "high": 0.2}
    content = {"schema": 2, "recipe": recipe.to_json(), "single_scores": {"yolox-1": 0.3}, "out_of_fold": scores}
    content |= {"test": {"yolox-1": scores, "ensemble": scores}}
    content |= {"gain": {"fused": 0.4, "single": 0.3, "interval": interval, "verdict": "ensemble"}}
    storage.write_json(f"{run}/ensemble.json", content)
    plan = TrainingPlan({"yolox-1": TrainConfig(subset=(1,))}, data, (0, 1), options=RunOptions())
    claim_output(str(root / "train"), plan, dataset)
    storage.write_json(str(root / "train" / "best.json"), {"folder": "best-1", "score": 0.5, "step": 1})
    output = Output(
        str(root / "found"), {"checkpoints": {"yolox-1": {"step": 1}}, "part": "test"}, [], names=["yolox-1"]
    )
    storage.write_json(
        str(root / "found" / "predictions.json"),
        output.description | {"images": "x", "counts": {"images": 1, "rejects": 0}},
    )
    return root


def _use_trials(root: Path) -> None:
    trials = read_trials(str(root / "run"))
    format_leaderboard(Leaderboard("smoke", "", True, ranked(trials)))
    rate_of(combination_of(TrainConfig(image_size=96)), rates_of(trials))
    actual(trials, devices=Devices("CPU", 2, 1))


def _use_recipe(root: Path) -> None:
    recipe = read_recipe(str(root / "run"))
    found = {"yolox-1": [_FOUND[:2]]}
    if set(recipe.members) <= set(found):
        assert all(isinstance(each, Detections) for each in recipe.apply(found))
    ensemble(str(root / "run"))


def _use_forecast(root: Path) -> None:
    record = read_record(str(root / "run"))
    assert record
    rate_of(combination_of(TrainConfig(image_size=96)), record.rates)
    assert record.before.devices.slots > 0


def _use_dataset(root: Path) -> None:
    dataset = open_dataset(str(root / "data"))
    assert dataset.counts["test_images"] >= 0
    dataclasses.replace(dataset.options)


_CLAIM = {"search": {"preset": "study"}, "dataset": "f00d"}
_DESCRIPTION = {"checkpoints": {"yolox-1": {"step": 2}}}
READERS: dict[str, Callable[[Path], object]] = {
    "run/run.json": lambda root: (
        read_claim(str(root / "run")),
        check_run_folder(str(root / "run"), _CLAIM, extend=False),
    ),
    "run/trials/*/trial.json": _use_trials,
    "run/leaderboard.json": lambda root: format_leaderboard(read_leaderboard(str(root / "run"))),
    "run/forecast.json": _use_forecast,
    "run/best/manifest.json": lambda root: name_checkpoints((), str(root / "run")),
    "run/best/yolox-1/config.json": lambda root: read_info(str(root / "run" / "best" / "yolox-1")),
    "run/ensemble.json": _use_recipe,
    "data/dataset.json": _use_dataset,
    "data/annotations/instances_fold0.json": lambda root: read_truths(open_dataset(str(root / "data")), 0),
    "train/train.json": lambda root: read_plan(str(root / "train")),
    "train/best.json": lambda root: best_of(str(root / "train")),
    "found/predictions.json": lambda root: Output(
        str(root / "found"), _DESCRIPTION, [], names=["yolox-1"], overwrite=True
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_an_edited_file_is_read_or_refused_in_one_line(name: str, folder: Path) -> None:
    file = min(folder.glob(name))
    before = file.read_text()
    content = json.loads(before)
    if "annotations" in content:  # one image and its boxes tell as much as all of them
        image = content["images"][0]
        of_it = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        content |= {"images": [image], "annotations": of_it[:1]}
    refused = 0
    try:
        READERS[name](folder)
        for text in variants(json.dumps(content)):
            file.write_text(text)
            try:
                READERS[name](folder)
            except InputError as error:
                refused += 1
                line = str(error)
                assert str(file) in line or str(file.parent) in line, text[:300]
                assert "\n" not in line
                assert len(line) < 900 + len(str(file)), line
            except Exception as error:
                pytest.fail(f"{type(error).__name__} {error}: {text[:2000]}")
    finally:
        file.write_text(before)
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("run/best/manifest.json", ("members", 0, "name", "../../x"), "members[0].name is '../../x'; want a name of"),
        (
            "run/best/manifest.json",
            ("members", 0, "folders", ["../x"]),
            "members[0].folders[0] is '../x'; want a path below",
        ),
        ("run/trials/*/trial.json", ("trial_id", "0123456789"), "trial_id is 0123456789, but the folder is that of "),
        ("run/trials/*/trial.json", ("trial_id", "../x"), "trial_id is '../x'; want a name of ASCII letters, digits"),
        ("run/trials/*/trial.json", ("checkpoint", "../../other"), "checkpoint is '../../other'; want a path below"),
        ("run/trials/*/trial.json", ("history", 5), "history is 5; want a list; was it edited? restore it, or remove "),
        (
            "run/trials/*/trial.json",
            ("history", 0, "loss", "x"),
            "history[0].loss is 'x'; want null, or -1000000000000000",
        ),
        ("run/trials/*/trial.json", ("config", "batch_size", 2_000), "config.batch_size is 2000; want 1 to 1024"),
        ("run/trials/*/trial.json", ("config", "variant", "d0"), "config: variant is 'd0' for yolox; want one of nano"),
        (
            "run/ensemble.json",
            ("recipe", "weights", "yolox-1", "x"),
            "recipe.weights.yolox-1 is 'x'; want a number; was it",
        ),
        ("run/ensemble.json", ("recipe", "weights", "yolox-1", -1), "recipe.weights.yolox-1 is -1; want more than 0"),
        (
            "run/ensemble.json",
            ("recipe", "weights", {}),
            "recipe: neither weights nor classifiers; want a member; was it edited?",
        ),
        ("train/train.json", ("configs", {"../x": {}}), "configs.../x.[key] is '../x'; want a name of ASCII letters"),
        ("train/best.json", ("folder", ".."), "folder is '..'; want a name of ASCII letters"),
        (
            "found/predictions.json",
            ("checkpoints", {"../x": 1}),
            "checkpoints.../x.[key] is '../x'; want a name of ASCII",
        ),
        ("data/dataset.json", ("shards", [{"name": "../x"}]), "shards[0].name is '../x'; want a name of ASCII letters"),
        (
            "data/dataset.json",
            ("options", "resize", "sideways"),
            "options.resize is 'sideways'; want one of 'stretch' or",
        ),
    ],
)
def test_a_wrong_field_is_told_with_its_path_and_value(
    name: str, change: tuple[Any, ...], told: str, folder: Path
) -> None:
    file = min(folder.glob(name))
    before = file.read_text()
    content = json.loads(before)
    *path, last, value = change
    at = content
    for step in path:
        at = at[step]
    at[last] = value
    file.write_text(json.dumps(content))
    try:
        with pytest.raises(InputError) as error:
            READERS[name](folder)
    finally:
        file.write_text(before)
    assert str(error.value).startswith(f"{file}: {told}")
