"""The whole way from kept checkpoints to a submission, with made-up members."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.ensemble.kept import FakePredict, every_image, good_members, write_dataset, write_kept
from tests.ensemble.members import classifier, detector, truths_of
from tests.owners import working_in
from vbd import storage
from vbd.config import RunOptions
from vbd.data.prepared import image_sizes, read_truths, sample_submission_ids
from vbd.ensemble import build
from vbd.ensemble.build import build_ensemble
from vbd.ensemble.choose.select import Procedure
from vbd.ensemble.fit import Fitted, Plan, fit_ensemble, plan_of
from vbd.ensemble.recipe import read_recipe
from vbd.ensemble.result import EnsembleResult
from vbd.ensemble.summary import summary_of
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.records import Detections, detections_from_table, detections_to_table
from vbd.submission.file import read_submission, write_submission

TRUTHS = truths_of(200)
GOOD = good_members()
DETECTORS = {name: GOOD[name] for name in ("faster_rcnn-1", "yolox-1")}
CLASSIFIERS = {"classifier-1": GOOD["classifier-1"]}
PLAN = Plan(replicates=40)


@functools.cache
def fitted_of(*, with_classifier: bool) -> Fitted:
    return fit_ensemble(DETECTORS, CLASSIFIERS if with_classifier else {}, TRUTHS, PLAN)


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def good(data: str, tmp_path_factory: pytest.TempPathFactory) -> EnsembleResult:
    """All members, in the default way; the submission stands beside `ensemble.json`."""
    with pytest.MonkeyPatch.context() as patch:
        return built(tmp_path_factory.mktemp("good"), data, GOOD, patch)[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


def built(run: Path, data: str, members, monkeypatch: pytest.MonkeyPatch, *, folds=(0,), plan=PLAN, **flags):
    asked = FakePredict(members)
    monkeypatch.setattr(build, "predict", asked)
    kept = write_kept(run, data, members, folds=folds)
    return build_ensemble(kept, data, options=RunOptions(), plan=plan, say=silent, **flags), asked


def test_an_ensemble_of_members_that_err_apart_beats_the_best_of_them() -> None:
    fitted = fitted_of(with_classifier=False)
    assert fitted.gain is not None
    assert fitted.gain.verdict == "ensemble"
    assert fitted.gain.gain.low > 0
    assert set(fitted.recipe.weights) == set(DETECTORS)
    best = max(evaluate(found, TRUTHS).map_40_findings for found in DETECTORS.values())
    assert evaluate(fitted.unseen, TRUTHS).map_40_findings > best + 0.02


def test_do_not_ensemble_where_the_second_member_is_noise() -> None:
    noise = detector(TRUTHS, 9, found=0.0)
    fitted = fit_ensemble({"noise": noise, "good": DETECTORS["yolox-1"]}, {}, TRUTHS, PLAN)
    assert fitted.gain is not None
    assert fitted.gain.verdict == "single"
    assert fitted.recipe.weights == {"good": 1.0}
    assert set(fitted.recipe.calibrations) == {"good"}


def test_no_members_and_too_few_images() -> None:
    with pytest.raises(InputError, match="no member"):
        fit_ensemble({}, {}, TRUTHS, PLAN)
    with pytest.raises(InputError, match=r"1 images .* too few"):
        fit_ensemble({"one": DETECTORS["yolox-1"][:1]}, {}, TRUTHS[:1], PLAN)


def test_a_classifier_that_knows_more_tells_normal_images_and_damps() -> None:
    fitted = fitted_of(with_classifier=True)
    assert fitted.recipe.no_finding.source in ("classifiers", "both")
    assert fitted.recipe.classifiers == ("classifier-1",)
    assert fitted.sources["classifiers"].auc > fitted.sources["boxes"].auc
    assert fitted.best_source.log_loss.estimate < fitted.sources["boxes"].log_loss.estimate
    assert fitted.recipe.gate.kind == "damp"
    assert fitted.gates["damp"].over_append.estimate > 0
    unseen = evaluate(fitted.unseen, TRUTHS)
    assert unseen.map_40 > evaluate(fitted_of(with_classifier=False).unseen, TRUTHS).map_40


def test_a_classifier_that_knows_nothing_is_not_asked() -> None:
    guesses = {"classifier-1": classifier(TRUTHS, 3, skill=0.0)}
    fitted = fit_ensemble(DETECTORS, guesses, TRUTHS, PLAN)
    assert fitted.sources["classifiers"].auc == pytest.approx(0.5, abs=0.1)
    assert fitted.sources["classifiers"].log_loss.estimate > fitted.sources["boxes"].log_loss.estimate


def test_classifiers_never_enter_the_fusion() -> None:
    fitted = fitted_of(with_classifier=True)
    assert "classifier-1" not in fitted.recipe.weights
    assert "classifier-1" not in fitted.recipe.calibrations


def test_what_an_image_is_told_does_not_depend_on_its_truth() -> None:
    """Nothing takes part in choosing that is scored: not in members, calibration, P(no finding) or the gate."""
    i = next(i for i, truth in enumerate(TRUTHS) if len(truth.boxes))
    changed = [dataclasses.replace(truth) for truth in TRUTHS]
    changed[i] = dataclasses.replace(changed[i], boxes=changed[i].boxes[:0], labels=changed[i].labels[:0])
    plan = Plan(gate="damp", replicates=1)
    first, second = (fit_ensemble(DETECTORS, CLASSIFIERS, each, plan) for each in (TRUTHS, changed))
    assert np.array_equal(first.unseen[i].boxes, second.unseen[i].boxes)
    assert np.array_equal(first.unseen[i].scores, second.unseen[i].scores)
    assert first.unseen[i].no_finding == second.unseen[i].no_finding
    assert first.recipe != second.recipe  # which is fitted on all images


def test_equal_seeds_make_equal_recipes_and_other_seeds_other_parts() -> None:
    first, second, other = (
        fit_ensemble(DETECTORS, CLASSIFIERS, TRUTHS, Plan(seed=seed, replicates=1)) for seed in (0, 0, 1)
    )
    assert first.recipe == second.recipe
    assert first.gates == second.gates
    assert first.gates["append"].score != other.gates["append"].score


def test_the_submission_is_what_the_recipe_makes_of_the_test_part(good: EnsembleResult) -> None:
    truths = read_truths(good.dataset, "test")
    submitted = read_submission(good.output)
    assert {found.image_id for found in submitted} == {truth.image_id for truth in truths}
    assert all(0 < found.no_finding < 1 for found in submitted)
    assert evaluate(submitted, truths).map_40 == pytest.approx(good.test["ensemble"].map_40, abs=1e-3)
    assert good.test["ensemble"].map_40_findings > good.test["yolox-1"].map_40_findings


def test_the_recipe_read_back_makes_the_same_submission_byte_for_byte(good: EnsembleResult, tmp_path: Path) -> None:
    recipe = read_recipe(str(Path(good.output).parent))
    assert recipe == good.fitted.recipe
    ids, sizes = sample_submission_ids(good.dataset), image_sizes(good.dataset, "test")
    found = {name: [[each for each in GOOD[name] if each.image_id in set(ids)]] for name in recipe.members}
    write_submission(recipe.apply(found), str(tmp_path / "again.csv"), image_ids=ids, original_hw=sizes)
    assert (tmp_path / "again.csv").read_bytes() == Path(good.output).read_bytes()


@pytest.mark.parametrize("gate", ["append", "damp", "replace", "quota"])
def test_the_gate_that_was_asked_for_is_used(data, tmp_path, monkeypatch, gate) -> None:
    result, _ = built(tmp_path / "run", data, GOOD, monkeypatch, plan=Plan(gate=gate, replicates=1))
    assert result.fitted.recipe.gate.kind == gate
    without = [found for found in read_submission(result.output) if not len(found.boxes)]
    assert bool(without) == (gate in ("replace", "quota"))


def test_classifiers_alone_tell_normal_images(data, tmp_path, monkeypatch) -> None:
    result, _ = built(tmp_path / "run", data, CLASSIFIERS, monkeypatch)
    assert result.fitted.recipe.weights == {}
    assert "no detector" in summary_of(result)
    submitted = read_submission(result.output)
    assert len(submitted) == 40
    assert not any(len(found.boxes) for found in submitted)
    assert result.test["ensemble"].per_class["No finding"] > 0.9


def test_one_detector_alone_is_submitted_where_it_was_asked_for(data, tmp_path, monkeypatch) -> None:
    output = str(tmp_path / "mine.csv")
    result, _ = built(tmp_path / "run", data, {"yolox-1": GOOD["yolox-1"]}, monkeypatch, output=output)
    assert len(read_submission(output)) == 40
    assert storage.read_object(str(tmp_path / "run" / "ensemble.json"))["submission"] == "mine.csv"
    assert result.fitted.recipe.weights == {"yolox-1": 1.0}
    assert "one detector: nothing to fuse" in summary_of(result)


def test_a_member_that_finds_nothing_is_reported(data, tmp_path, monkeypatch) -> None:
    nothing = [Detections(found.image_id) for found in GOOD["yolox-1"]]
    members = {"faster_rcnn-1": GOOD["faster_rcnn-1"], "yolox-1": nothing}
    monkeypatch.setattr(build, "predict", FakePredict(members))
    lines: list[str] = []
    run = write_kept(tmp_path / "run", data, members)
    build_ensemble(run, data, options=RunOptions(), plan=PLAN, say=lines.append)
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: yolox-1: finds nothing in all 80 images that none was trained on",
        "warning: yolox-1: finds nothing in all 40 test images",
    ]


def test_checkpoints_of_several_folds(data, tmp_path, monkeypatch) -> None:
    result, asked = built(tmp_path / "run", data, GOOD, monkeypatch, folds=(0, 1))
    assert len(result.truths) == 160
    assert len(asked.asked) == 6
    assert result.test["classifier-1"].per_class["No finding"] > 0.9
    assert len(read_submission(result.output)) == 40


def test_members_that_are_not_needed_are_not_asked_where_the_truth_is_hidden(tmp_path, monkeypatch) -> None:
    data = write_dataset(tmp_path / "hidden", has_test_truth=False)
    members = {"yolox-1": GOOD["yolox-1"], "efficientdet-1": detector(every_image(), 9, found=0.0, false_boxes=8)}
    result, asked = built(tmp_path / "run", data, members, monkeypatch)
    assert asked.asked == ["yolox-1"]
    assert result.test == {}
    assert "test" not in summary_of(result).splitlines()[0]


def test_what_is_told_and_kept(good: EnsembleResult) -> None:
    text, run = summary_of(good), str(Path(good.output).parent)
    for words in ("(synthetic data)", "yolox-1", "classifier-1", "P(no finding) from", "most unlike", "(checked)"):
        assert words in text
    assert text.count(": used") == 1
    content = storage.read_object(f"{run}/ensemble.json")
    assert content["submission"] == "submission.csv"
    assert content["recipe"]["gate"]["kind"] == good.fitted.recipe.gate.kind
    assert set(content["gates"]) == {"append", "damp", "replace", "quota"}
    kept = detections_from_table(storage.read_table(f"{run}/ensemble_out_of_fold.parquet"))
    assert evaluate(kept, good.truths).map_40 == pytest.approx(good.out_of_fold.map_40)


def test_an_ensemble_is_not_made_in_a_run_that_a_search_works_on(data, tmp_path) -> None:
    run = write_kept(tmp_path / "run", data, {"yolox-1": GOOD["yolox-1"]})
    before = storage.list_names(run)
    with working_in(run) as told:
        with pytest.raises(InputError) as caught:
            build_ensemble(run, data, options=RunOptions(), say=silent, connect=lambda: pytest.fail("Ray was started"))
        assert str(caught.value) == told
    assert sorted({*before, "owner.json"}) == storage.list_names(run)


def test_members_of_different_folds_share_nothing(data, tmp_path, monkeypatch) -> None:
    members = {"yolox-1": GOOD["yolox-1"], "faster_rcnn-1": GOOD["faster_rcnn-1"]}
    run = Path(write_kept(tmp_path / "run", data, members))
    table = detections_from_table(storage.read_table(str(run / "best" / "yolox-1" / "out_of_fold.parquet")))
    moved = [dataclasses.replace(found, image_id=f"x{found.image_id}") for found in table]
    storage.write_table(str(run / "best" / "yolox-1" / "out_of_fold.parquet"), detections_to_table(moved))
    with pytest.raises(InputError, match="different folds"):
        build_ensemble(str(run), data, options=RunOptions(), say=silent)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"schema": 1}, "schema 1, want 2; to make the ensemble, run: "),
        ({"schema": 2}, "no field recipe; was it edited? restore it, or to make the ensemble, run: "),
        ({"schema": 2, "recipe": {"weights": {}, "fusion": {"iou_threshold": 3.0}}}, "iou_threshold 3.0"),
        ({"schema": 2, "recipe": {"weights": {"../a": 1.0}}}, "want a name of ASCII letters, digits and . _ -"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_told_in_one_line(tmp_path, content, words) -> None:
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"ensemble\.json") as told:
        read_recipe(str(tmp_path))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_flags_that_mean_nothing_are_told() -> None:
    with pytest.raises(InputError, match="--replicates 0: want 1 or more"):
        plan_of(gate="auto", trials=0, seed=0, replicates=0)
    assert plan_of(gate="damp", trials=7, seed=3, replicates=9).procedure.trials == 7


def test_how_far_it_is_is_told() -> None:
    lines: list[str] = []
    plan = Plan(procedure=Procedure(trials=2), replicates=1)
    fitted = fit_ensemble(DETECTORS, CLASSIFIERS, TRUTHS, plan, say=lines.append)
    assert fitted.choice is not None
    for step in fitted.choice.selection.history[1:]:
        assert f"  with {step.added}: {step.score:.4f}" in lines
    assert sum(line.startswith("calibrating 2 detectors") for line in lines) == 3
    assert sum(line.startswith("searching 2") for line in lines) == 3
    assert lines[-1] == "measuring gates"
