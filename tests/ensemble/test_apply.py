"""An ensemble on other images than those of its submission."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.ensemble.kept import FakePredict, good_members, write_dataset, write_kept
from vbd import storage
from vbd.config import RunOptions
from vbd.ensemble import apply, build
from vbd.ensemble.apply import ensemble_checkpoints, write_ensemble
from vbd.ensemble.build import build_ensemble
from vbd.ensemble.fit import Plan
from vbd.ensemble.result import EnsembleResult
from vbd.errors import InputError
from vbd.predict.outputs import Extras, Found, write_extras
from vbd.predict.request import Request, images_of
from vbd.records import detections_from_table, detections_to_table
from vbd.training.members import write_members

MEMBERS = good_members()


@pytest.fixture(scope="module", params=[(0,), (0, 1)], ids=["one fold", "two folds"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, EnsembleResult]:
    folder = tmp_path_factory.mktemp("made")
    data = write_dataset(folder / "data")
    run = write_kept(folder / "run", data, MEMBERS, folds=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "predict", FakePredict(MEMBERS))
        result = build_ensemble(run, data, options=RunOptions(), plan=Plan(replicates=2), say=lambda line: None)
    return folder, data, result


def predicting(request: Request, *, finish: Callable[[], Found], **_: object) -> tuple[int, int]:
    """Stands in for `write_predictions`: a table for each checkpoint, of the test part, and the extras of what is finished."""
    for name, folder in request.checkpoints.items():
        member = Path(folder).name.partition("-fold")[0]
        storage.write_table(f"{request.output}/{name}.parquet", detections_to_table(MEMBERS[member][160:]))
    items, _ = images_of(request)
    write_extras(request.extras, [finish()], items, images=request.images, say=print)
    return 40, 0


def test_what_an_ensemble_finds_is_what_it_submits(made, tmp_path, monkeypatch) -> None:
    folder, data, result = made
    monkeypatch.setattr(apply, "write_predictions", predicting)
    run = str(folder / "run")
    extras = Extras(coco=str(tmp_path / "found.json"))
    request = Request(ensemble_checkpoints(run), data, str(tmp_path / "out"), extras=extras)
    assert write_ensemble(run, request) == (40, 0)
    found = detections_from_table(storage.read_table(str(tmp_path / "out" / "ensemble.parquet")))
    assert [each.image_id for each in found] == [each.image_id for each in result.detections]
    for mine, submitted in zip(found, result.detections, strict=True):
        assert np.array_equal(mine.boxes, submitted.boxes)
        assert np.array_equal(mine.scores, submitted.scores)
        assert mine.no_finding == submitted.no_finding
    assert len(json.loads((tmp_path / "found.json").read_text())) == sum(len(each.boxes) for each in found)


def test_only_what_the_recipe_needs_predicts(made) -> None:
    folder, _, result = made
    tables = ensemble_checkpoints(str(folder / "run"))
    assert {name.partition("-1")[0] + "-1" for name in tables} == set(result.fitted.recipe.members)


def test_a_member_that_is_not_kept_any_more_is_told(made, tmp_path) -> None:
    folder, _, result = made
    storage.write_json(str(tmp_path / "ensemble.json"), storage.read_json(str(folder / "run" / "ensemble.json")))
    write_members(str(tmp_path), [], result.dataset.fingerprint, synthetic=True)
    with pytest.raises(InputError) as error:
        ensemble_checkpoints(str(tmp_path))
    assert str(error.value).startswith(
        f"{tmp_path}/manifest.json: members is []; want members of different names, at least one; "
    )
    kept = storage.read_json(str(folder / "run" / "best" / "manifest.json"))
    kept["members"] = kept["members"][:1]
    storage.write_json(str(tmp_path / "manifest.json"), kept)
    with pytest.raises(InputError, match=r"member \S+ is not kept any more; to make the ensemble, run: "):
        ensemble_checkpoints(str(tmp_path))


def test_a_run_without_an_ensemble_is_told(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no ensemble\.json; to make the ensemble, run: "):
        ensemble_checkpoints(str(tmp_path))
