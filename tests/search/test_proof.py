"""A trial may claim a score when its id, its checkpoint and its detections tell the same."""

import dataclasses
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.search.trials import checkpoint_of, config_of, ended_trial
from vbd import storage
from vbd.config import config_hash
from vbd.config.phases import with_phase
from vbd.data.prepared import open_dataset
from vbd.errors import StoreError
from vbd.records import Trial
from vbd.search.kept.proof import TruthsOfFold, agree, prove, truths_of_fold
from vbd.search.kept.trial import TrialFolder, trial_id_of


@pytest.fixture
def truths(prepared: str) -> TruthsOfFold:
    return truths_of_fold(open_dataset(prepared))


@pytest.fixture
def trial(prepared: str, tmp_path: Path) -> Trial:
    return ended_trial(str(tmp_path / "run"), tmp_path, config_of(1, fold=1), prepared)


def refusal(trial: Trial, truths: TruthsOfFold) -> str:
    """Why a trial is refused."""
    refused = prove(trial, truths)
    assert refused.status == "refused"
    assert math.isnan(refused.score)
    return refused.reason


def test_a_trial_that_tells_the_truth_is_as_it_was(trial: Trial, truths: TruthsOfFold) -> None:
    assert 0 < trial.score < 1
    assert prove(trial, truths) == trial
    stopped = replace(trial, status="stopped", reason="halving: the worst of 3")
    assert prove(stopped, truths) == stopped


def test_the_truths_of_a_fold_are_read_once(prepared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(prepared)
    truths = truths_of_fold(dataset)
    assert len(truths(0)) == 20
    monkeypatch.setattr(storage, "read_object", None)
    assert truths(0) is truths(0)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"score": 0.9999}, "its checkpoint scored 0."),
        ({"steps": 30}, "its checkpoint is of step 40, its score of step 30"),
        ({"trial_id": "0123456789"}, "its config is that of trial "),
        ({"config_hash": "f" * 16}, "its config has the hash "),
        ({"config": config_of(2, fold=1)}, "its config has the hash "),
        ({"detections": ""}, "it kept no detections"),
        ({"checkpoint": "/nowhere"}, "/nowhere: not a checkpoint"),
    ],
)
def test_a_trial_that_claims_something_else_is_refused(
    claims: dict[str, Any], reason: str, trial: Trial, truths: TruthsOfFold
) -> None:
    assert refusal(replace(trial, **claims), truths).startswith(reason)


def test_a_checkpoint_of_another_config_is_refused_even_when_it_would_have_been_made_so(
    trial: Trial, prepared: str, truths: TruthsOfFold
) -> None:
    # Up to its own step the child of a population is its parent, but the weights were trained under another name.
    child = with_phase(replace(trial.config, steps=80), 40, strength=0.5, rate=1.2)
    claimed = replace(trial, config=child, config_hash=config_hash(child), trial_id=trial_id_of(child))
    assert refusal(claimed, truths) == (
        f"its checkpoint was trained with config {trial.config_hash}, not {config_hash(child)}"
    )


def test_detections_that_score_otherwise_are_refused(
    trial: Trial, prepared: str, truths: TruthsOfFold, tmp_path: Path
) -> None:
    other = checkpoint_of(tmp_path / "other", trial.config, prepared, step=40, skill=0.9)
    shutil.copy(tmp_path / "other" / "out_of_fold.parquet", trial.detections)
    assert refusal(trial, truths) == f"its detections score {other['score']:.9g}, not {trial.score:.9g}"
    pruned = TrialFolder(str(tmp_path / "run"), trial.trial_id).prune()
    assert refusal(pruned, truths).startswith("its detections score ")


def test_the_detections_in_the_checkpoint_are_those_of_the_trial(
    trial: Trial, prepared: str, truths: TruthsOfFold, tmp_path: Path
) -> None:
    checkpoint_of(tmp_path / "other", trial.config, prepared, step=40, skill=0.9)
    shutil.copy(tmp_path / "other" / "out_of_fold.parquet", trial.checkpoint)
    assert refusal(trial, truths) == "the detections in its checkpoint are others than its own"


def test_a_trial_whose_weights_were_not_kept_is_proven_by_its_detections(
    trial: Trial, truths: TruthsOfFold, tmp_path: Path
) -> None:
    pruned = TrialFolder(str(tmp_path / "run"), trial.trial_id).prune()
    assert pruned.checkpoint == ""
    assert prove(pruned, truths) == pruned
    assert refusal(replace(pruned, score=pruned.score + 1e-8), truths).startswith("its detections score ")


def test_what_is_broken_is_refused(trial: Trial, truths: TruthsOfFold) -> None:
    model = Path(trial.checkpoint) / "model.pt"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    size = len(whole)
    assert refusal(trial, truths) == f"its checkpoint is not whole: model.pt has {size - 1} of {size} bytes"
    model.write_bytes(whole)
    for content in (b"PAR1", storage.read_bytes(str(Path(trial.checkpoint) / "config.json"))):
        Path(trial.detections).write_bytes(content)
        assert trial.detections in refusal(trial, truths)
    (Path(trial.checkpoint) / "config.json").write_text("{")
    assert "config.json" in refusal(trial, truths)


def test_a_table_of_something_else_is_refused(trial: Trial, prepared: str, truths: TruthsOfFold) -> None:
    shutil.copy(Path(prepared) / "annotations" / "readers.parquet", trial.detections)
    assert refusal(trial, truths).startswith(f"{trial.detections}: no column 'boxes'; want image_id")


def test_a_failed_trial_keeps_its_reason_and_has_no_score(trial: Trial, truths: TruthsOfFold) -> None:
    failed = replace(trial, status="failed", reason="no memory")
    proven = prove(failed, truths)
    assert math.isnan(proven.score)
    assert dataclasses.replace(proven, score=failed.score) == failed
    nothing = replace(failed, status="unfinished", reason="", score=math.nan, checkpoint="", detections="")
    assert prove(nothing, truths).status == "unfinished"


def test_a_store_out_of_reach_proves_nothing(
    trial: Trial, truths: TruthsOfFold, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(location: str, *_: Any) -> Any:
        raise StoreError(f"{location}: out of reach")

    monkeypatch.setattr(storage, "read_table", out_of_reach)
    with pytest.raises(StoreError):
        prove(trial, truths)
    monkeypatch.setattr(storage, "list_files", out_of_reach)
    with pytest.raises(StoreError):
        prove(trial, truths)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (0.1, 0.1, True),
        (0.1, 0.1 + 5e-7, True),
        (0.1, 0.1 + 2e-6, False),
        (math.nan, math.nan, True),
        (math.nan, 0, False),
    ],
)
def test_scores_agree_within_a_tolerance_and_two_unknown_ones_do(one: float, other: float, same: bool) -> None:
    assert agree(one, other, tolerance=1e-6) == agree(other, one, tolerance=1e-6) == same
