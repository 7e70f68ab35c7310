"""Trial folders, without Ray or training: checkpoints of no weights, with the reports that a trial would make."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vbd import storage
from vbd.config import TrainConfig, config_hash
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.records import Detections, detections_from_table, detections_to_table
from vbd.search.kept.trial import TrialFolder, read_trials, seconds_of, trial_id_of
from vbd.training.checkpoint import write_checkpoint

CONFIG = TrainConfig(steps=40, report_every=10, warmup_steps=0)


@pytest.fixture
def dataset(prepared: str) -> PreparedDataset:
    return open_dataset(prepared)


class _Run:
    """A run folder, and trials that report into it."""

    def __init__(self, folder: Path, dataset: PreparedDataset):
        self.location, self.dataset, self.made = str(folder / "run"), dataset, folder / "made"

    def folder(self, config: TrainConfig = CONFIG) -> TrialFolder:
        return TrialFolder(self.location, trial_id_of(config))

    def begin(self, config: TrainConfig = CONFIG, number: int = 0) -> str | None:
        return self.folder(config).begin(config, dataset=self.dataset.fingerprint, number=number)

    def report(self, step: int, score: float, config: TrainConfig = CONFIG, **more: Any) -> None:
        metrics = {"step": step, SCORE: score, "seconds": step / 10}
        checkpoint = self.made / f"{step}"
        write_checkpoint(
            checkpoint, config=config, dataset=self.dataset, weights={}, state={}, step=step, metrics=metrics
        )
        storage.write_table(str(checkpoint / "out_of_fold.parquet"), detections_to_table([Detections(f"at-{step}")]))
        hold = more.pop("hold", 0)
        self.folder(config).keep(metrics | {"attempt_started": 1.0} | more, checkpoint, hold=hold)

    def steps_on_disk(self, config: TrainConfig = CONFIG) -> list[int]:
        names = storage.list_names(self.folder(config).location)
        return [int(name.removeprefix("step-")) for name in names if name.startswith("step-")]


@pytest.fixture
def run(tmp_path: Path, dataset: PreparedDataset) -> _Run:
    return _Run(tmp_path, dataset)


def test_a_trial_keeps_its_best_and_its_newest_checkpoint(run: _Run) -> None:
    assert run.begin() is None
    for step, score in ((10, 0.1), (20, 0.3), (30, 0.2)):
        run.report(step, score)
    trial = run.folder().read()
    assert trial is not None
    assert (trial.status, trial.score, trial.steps, trial.config) == ("running", 0.3, 20, CONFIG)
    assert (trial.trial_id, trial.config_hash) == (config_hash(CONFIG)[:10], config_hash(CONFIG))
    assert [report["step"] for report in trial.history] == [10, 20, 30]
    assert trial.checkpoint.endswith("step-00000020")
    assert run.steps_on_disk() == [20, 30]
    (found,) = detections_from_table(storage.read_table(trial.detections))
    assert found.image_id == "at-20"


def test_the_checkpoint_that_others_descend_from_is_held(run: _Run) -> None:
    run.begin()
    for step, score in ((10, 0.1), (20, 0.3), (30, 0.2)):
        run.report(step, score, hold=10)
    assert run.steps_on_disk() == [10, 20, 30]


def test_an_ended_trial_keeps_the_best_alone_and_a_pruned_one_its_detections(run: _Run) -> None:
    run.begin()
    run.report(10, 0.3)
    run.report(20, 0.2)
    assert run.folder().finish().status == "finished"
    assert run.steps_on_disk() == [10]
    pruned = run.folder().prune()
    assert (pruned.checkpoint, pruned.score, pruned.steps) == ("", 0.3, 10)
    assert run.steps_on_disk() == []
    assert storage.exists(pruned.detections)
    assert run.folder().read() == pruned


def test_what_somebody_else_put_into_its_folder_stays_and_no_link_is_followed(run: _Run, tmp_path: Path) -> None:
    run.begin()
    run.report(10, 0.1)
    folder, other = Path(run.folder().location), tmp_path / "other"
    storage.copy_folder(str(folder / "step-00000010"), str(other))
    files = sorted(path.name for path in other.iterdir())
    (folder / "step-00000005").symlink_to(other)
    (folder / "step-notes").write_text("mine")
    (folder / "step-00000010" / "notes").write_text("mine")
    (folder / "notes").write_text("mine")
    run.report(20, 0.2)
    run.report(30, 0.3)
    run.folder().prune()
    names = ["notes", "out_of_fold.parquet", "step-00000005", "step-00000010", "step-notes", "trial.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in (folder / "step-00000010").iterdir()] == ["notes"]
    run.folder().begin(CONFIG, dataset="another", number=0)
    names.remove("out_of_fold.parquet")
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(path.name for path in other.iterdir()) == files


def test_a_trial_goes_on_from_its_newest_whole_checkpoint(run: _Run) -> None:
    run.begin()
    run.report(10, 0.3)
    run.report(20, 0.2)
    assert str(run.begin()).endswith("step-00000020")
    broken = Path(run.folder().location) / "step-00000020" / "model.pt"
    broken.write_bytes(broken.read_bytes()[:-1])
    assert str(run.begin()).endswith("step-00000010")
    trial = run.folder().read()
    assert trial is not None
    assert [report["step"] for report in trial.history] == [10]


def test_a_report_that_was_lost_after_its_checkpoint_is_read_from_there(run: _Run) -> None:
    run.begin()
    run.report(10, 0.1)
    before = (Path(run.folder().location) / "trial.json").read_bytes()
    run.report(20, 0.4)
    (Path(run.folder().location) / "trial.json").write_bytes(before)  # killed in between
    assert str(run.begin()).endswith("step-00000020")
    trial = run.folder().read()
    assert trial is not None
    assert [report[SCORE] for report in trial.history] == [0.1, 0.4]
    assert (trial.score, trial.steps) == (0.4, 20)
    assert detections_from_table(storage.read_table(trial.detections))[0].image_id == "at-20"


def test_half_a_copy_is_no_checkpoint_and_is_removed(run: _Run) -> None:
    run.begin()
    run.report(10, 0.1)
    folder = Path(run.folder().location)
    shutil.copytree(folder / "step-00000010", folder / "step-00000020.abc.tmp")
    assert str(run.begin()).endswith("step-00000010")
    run.report(20, 0.2)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["step-00000020"]


def test_a_child_begins_at_its_parents_checkpoint_and_not_at_a_later_one(run: _Run) -> None:
    child = replace(CONFIG, phase_steps=(20,), phase_strengths=(0.5,), phase_rates=(1.2,))
    run.begin()
    run.report(10, 0.1)
    run.report(20, 0.05, hold=20)
    run.report(30, 0.2, hold=20)
    assert str(run.begin(child)).endswith(f"{trial_id_of(CONFIG)}/step-00000020")
    run.report(30, 0.3, child)
    assert str(run.begin(child)).endswith(f"{trial_id_of(child)}/step-00000030")
    grandchild = replace(child, phase_steps=(20, 25), phase_strengths=(0.5, 0.6), phase_rates=(1.2, 1.0))
    assert str(run.begin(grandchild)).endswith(f"{trial_id_of(CONFIG)}/step-00000020")  # its parent's is past the phase


def test_a_trial_on_another_dataset_is_trained_anew(run: _Run) -> None:
    run.begin()
    run.report(10, 0.1)
    assert run.folder().begin(CONFIG, dataset="another", number=0) is None
    trial = run.folder().read()
    assert trial is not None
    assert not trial.history
    assert run.steps_on_disk() == []
    assert read_trials(run.location, "another")
    assert not read_trials(run.location, run.dataset.fingerprint)


def test_trials_are_read_in_the_order_in_which_they_were_drawn(run: _Run) -> None:
    configs = [replace(CONFIG, seed=seed) for seed in range(4)]
    for number, config in reversed(list(enumerate(configs))):
        run.begin(config, number)
    assert [trial.config.seed for trial in read_trials(run.location)] == [0, 1, 2, 3]
    assert read_trials(run.location + "-empty") == []


def test_a_run_without_a_score_has_no_number_for_one(run: _Run) -> None:
    run.begin()
    run.report(10, math.nan)
    trial = run.folder().read()
    assert trial is not None
    assert math.isnan(trial.score)
    assert trial.checkpoint
    run.report(20, 0.0)
    trial = run.folder().read()
    assert trial is not None
    assert (trial.score, trial.steps) == (0.0, 20)


def test_the_folder_can_be_moved(run: _Run, tmp_path: Path) -> None:
    run.begin()
    run.report(10, 0.1)
    shutil.move(run.location, tmp_path / "moved")
    (trial,) = read_trials(str(tmp_path / "moved"))
    assert storage.exists(storage.join(trial.checkpoint, "model.pt"))
    assert storage.exists(trial.detections)


def test_seconds_are_those_of_all_attempts() -> None:
    history = [
        {"seconds": 5.0, "attempt_started": 1.0},
        {"seconds": 9.0, "attempt_started": 1.0},
        {"seconds": 4.0, "attempt_started": 50.0},
    ]
    assert seconds_of(history) == 13.0


def test_a_broken_trial_is_told_with_its_file(run: _Run) -> None:
    run.begin()
    location = Path(run.folder().location) / "trial.json"
    location.write_text('{"schema": 2}')
    with pytest.raises(InputError, match=r"trial\.json: no field trial_id; was it edited"):
        read_trials(run.location)


def test_endings_tell_their_reason(run: _Run) -> None:
    run.begin()
    run.report(10, 0.1)
    assert run.folder().stop("halving: below the cut at step 10").reason.startswith("halving")
    assert run.folder().lose("its process died").status == "died"
    run.begin()
    assert run.folder().fail("the loss is nan").status == "failed"
    run.begin()
    trial = run.folder().read()
    assert trial is not None
    assert (trial.status, trial.reason) == ("running", "")
