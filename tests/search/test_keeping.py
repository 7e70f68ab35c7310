"""Which checkpoints stay, whoever ends first and whenever the driver is killed."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.search.trials import RCNN, FakeTrials, checkpoint_of, config_of, trial_of
from vbd import storage
from vbd.config import TrainConfig
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.kept.keep import Keeper, best_of_families, keep_best
from vbd.search.kept.leaderboard import Leaderboard, ranked
from vbd.search.kept.trial import TrialFolder, read_trials, trial_id_of
from vbd.training.members import Member, read_members


def test_the_best_of_each_family_have_a_rank() -> None:
    trials = [trial_of(seed, score) for seed, score in enumerate((0.5, 0.7, math.nan, 0.9, 0.8, 0.6))]
    trials[3] = replace(trials[3], status="refused")
    trials[4] = replace(trials[4], status="failed")
    trials += [trial_of(9, 0.1, **RCNN)]
    trials = [replace(trial, checkpoint="somewhere") for trial in trials]
    trials[0] = replace(trials[0], checkpoint="")
    best = best_of_families(trials, per_family=2)
    assert {name: trial.score for name, trial in best.items()} == {"yolox-1": 0.7, "yolox-2": 0.6, "faster_rcnn-1": 0.1}
    assert best_of_families(trials, per_family=0) == {}


# ------------------------------------------------------------------------------------------------------ while it runs


@pytest.fixture
def fakes(prepared: str, tmp_path: Path) -> FakeTrials:
    return FakeTrials(str(tmp_path / "run"), tmp_path, prepared)


# Equal scores too: the place is the id's then.
CONFIGS = [config_of(seed, **(RCNN if seed % 3 == 0 else {})) for seed in range(30)]
SCORES = {
    trial_id_of(config): random.Random(5).choice([0.1, 0.2, 0.3]) + seed % 7 / 100
    for seed, config in enumerate(CONFIGS)
}


def run_all(fakes: FakeTrials, keeper: Keeper, configs: list[TrainConfig], *, at_once: int) -> Iterator[int]:
    """Runs trials, some at once, each with two reports; yields how many run after whatever happens."""
    running: list[TrainConfig] = []
    waiting = list(configs)
    while waiting or running:
        if waiting and len(running) < at_once:
            running.append(waiting.pop())
            fakes.begin(running[-1])
            fakes.report(running[-1], step=20, score=0.0)
            yield len(running)
            continue
        config = running.pop(random.Random(len(waiting)).randrange(len(running)))
        folder = fakes.folder(config)
        fakes.report(config, step=40, score=SCORES[folder.trial_id])
        keeper.tell(folder.stop("halving") if config.seed % 5 == 0 else folder.finish())
        yield len(running)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_disk_never_holds_more_than_the_best_and_what_runs(seed: int, fakes: FakeTrials) -> None:
    order = random.Random(seed).sample(CONFIGS, len(CONFIGS))
    keeper = Keeper(fakes.run, per_family=2)
    for running in run_all(fakes, keeper, order, at_once=3):
        assert len(fakes.checkpoints()) <= 2 * 2 + running
    trials = read_trials(fakes.run)
    assert len(trials) == 30
    expected = best_of_families([replace(t, checkpoint="x", score=SCORES[t.trial_id]) for t in trials], per_family=2)
    assert {name.split("/")[0] for name in fakes.checkpoints()} == {trial.trial_id for trial in expected.values()}
    for trial in trials:
        assert trial.score == SCORES[trial.trial_id]
        assert storage.exists(trial.detections)
        assert bool(trial.checkpoint) == (trial in best_of_families(trials, per_family=2).values())


def test_two_reports_leave_the_best_and_the_newest_of_a_running_trial_alone(fakes: FakeTrials) -> None:
    slow, *others = CONFIGS[1:6]
    fakes.begin(slow)
    fakes.report(slow, step=20, score=0.01)
    fakes.report(slow, step=30, score=0.005)
    keeper = Keeper(fakes.run, per_family=1)
    for config in others:
        fakes.begin(config)
        fakes.report(config, step=40, score=0.9)
        keeper.tell(fakes.folder(config).finish())
    keeper.tell(fakes.folder(slow).wait())
    keeper.tell(fakes.folder(slow).lose("its process died"))
    assert [name for name in fakes.checkpoints() if name.startswith(trial_id_of(slow))] == [
        f"{trial_id_of(slow)}/step-00000020",
        f"{trial_id_of(slow)}/step-00000030",
    ]


def ended(fakes: FakeTrials, seed: int, score: float) -> Trial:
    config = config_of(seed)
    fakes.begin(config)
    fakes.report(config, step=40, score=score)
    return fakes.folder(config).finish()


def test_who_fell_out_is_told_and_telling_twice_changes_nothing(fakes: FakeTrials) -> None:
    keeper = Keeper(fakes.run, per_family=1)
    first, second = ended(fakes, 1, 0.1), ended(fakes, 2, 0.2)
    assert keeper.tell(first) == []
    assert keeper.tell(second) == [first.trial_id]
    after = fakes.checkpoints()
    assert after == [f"{second.trial_id}/step-00000040"]
    keeper.tell(first)
    keeper.tell(second)
    assert fakes.checkpoints() == after


def test_a_restart_goes_on_where_a_killed_driver_stopped(fakes: FakeTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [ended(fakes, seed, 0.1 * seed) for seed in range(1, 4)]
    running = config_of(9)
    fakes.begin(running)
    fakes.report(running, step=20, score=0.0)
    assert len(fakes.checkpoints()) == 4

    def killed(self: Any, wanted: set[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialFolder, "_keep_only", killed)
        with pytest.raises(KeyboardInterrupt):  # it has said so, and deleted nothing
            Keeper(fakes.run, per_family=1)
    assert len(fakes.checkpoints()) == 4
    Keeper(fakes.run, per_family=1)
    assert sorted(fakes.checkpoints()) == sorted(
        [f"{trials[2].trial_id}/step-00000040", f"{trial_id_of(running)}/step-00000020"]
    )


def test_trials_on_another_dataset_do_not_count(fakes: FakeTrials) -> None:
    ended(fakes, 1, 0.9)
    assert Keeper(fakes.run, per_family=1, dataset="another").tell(ended(fakes, 2, 0.1)) == []


def test_all_are_kept_when_asked_for(fakes: FakeTrials) -> None:
    keeper = Keeper(fakes.run, per_family=1, keep_all=True)
    for seed in range(3):
        assert keeper.tell(ended(fakes, seed, 0.1 * seed)) == []
    assert len(fakes.checkpoints()) == 3


def test_weights_go_from_an_object_store_too(s3_bucket: str, prepared: str, tmp_path: Path) -> None:
    fakes = FakeTrials(f"{s3_bucket}/keeping", tmp_path, prepared)
    keeper = Keeper(fakes.run, per_family=1)
    trials = [ended(fakes, seed, 0.1 * seed) for seed in range(1, 4)]
    for trial in trials:
        keeper.tell(trial)
    assert fakes.checkpoints() == [f"{trials[2].trial_id}/step-00000040"]
    assert all(storage.exists(trial.detections) for trial in trials)
    board = Leaderboard("test", fakes.dataset.fingerprint, True, ranked(read_trials(fakes.run)))
    assert keep_best(fakes.run, board, per_family=1) == read_members(f"{fakes.run}/best", fakes.dataset)


# ----------------------------------------------------------------------------------------------------- when it has ended


class Stored:
    """A run whose trials have checkpoints on the disk, and the leaderboard of some of them."""

    def __init__(self, folder: Path, data: str):
        self.run, self.folder, self.dataset = str(folder / "run"), folder, open_dataset(data)

    def trial(self, seed: int, score: float, **fields: Any) -> Trial:
        trial = trial_of(seed, score, **fields)
        folder = self.folder / "trials" / trial.trial_id
        checkpoint_of(folder, trial.config, self.dataset.location, step=40)
        return replace(trial, checkpoint=str(folder))

    def board(self, *trials: Trial) -> Leaderboard:
        return Leaderboard("test", self.dataset.fingerprint, True, ranked(trials))

    def manifest(self) -> list[Member] | None:
        """What the manifest names, each of which must be there; None without one."""
        if not (Path(self.run) / "best" / "manifest.json").exists():
            return None
        members = read_members(f"{self.run}/best", self.dataset)
        for member in members:
            (copy,) = member.folders
            assert storage.read_object(f"{copy}/config.json")["config"]["seed"] == SEEDS[member.trial_id]
            assert (Path(copy) / "model.pt").exists()
        return members


SEEDS = {trial_id_of(config_of(seed)): seed for seed in range(10)} | {
    trial_id_of(config_of(seed, **RCNN)): seed for seed in range(10)
}


@pytest.fixture
def stored(tmp_path: Path, prepared: str) -> Stored:
    return Stored(tmp_path, prepared)


def test_the_best_of_each_family_are_kept_and_can_be_moved(stored: Stored) -> None:
    trials = [stored.trial(1, 0.5), stored.trial(2, 0.7), stored.trial(3, 0.6), stored.trial(4, 0.1, **RCNN)]
    kept = keep_best(stored.run, stored.board(*trials, trial_of(5, 0.9)), per_family=2)
    assert [(member.name, SEEDS[member.trial_id], member.score) for member in kept] == [
        ("yolox-1", 2, 0.7),
        ("yolox-2", 3, 0.6),
        ("faster_rcnn-1", 4, 0.1),
    ]
    assert stored.manifest() == kept
    moved = stored.folder / "moved"
    Path(stored.run).rename(moved)
    assert read_members(f"{moved}/best", stored.dataset)[0].folders == (f"{moved}/best/yolox-1",)


def test_what_is_there_and_equal_is_not_copied_again(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (stored.trial(seed, 0.1 * seed) for seed in (1, 2, 3))
    keep_best(stored.run, stored.board(first, second), per_family=2)
    copied = []
    original = storage.copy_folder
    monkeypatch.setattr(storage, "copy_folder", lambda a, b: (copied.append(b), original(a, b)))
    keep_best(stored.run, stored.board(first, second), per_family=2)
    assert copied == []
    keep_best(stored.run, stored.board(replace(first, score=0.9), second), per_family=2)
    assert len(copied) == 2
    del copied[:]
    (Path(stored.run) / "best" / "yolox-2" / "model.pt").write_bytes(b"half")
    keep_best(stored.run, stored.board(replace(first, score=0.9), second, third), per_family=2)
    assert copied == [f"{stored.run}/best/yolox-2"]
    assert [SEEDS[member.trial_id] for member in stored.manifest() or []] == [1, 3]


def test_what_no_longer_belongs_to_the_best_goes(stored: Stored) -> None:
    trials = [stored.trial(seed, 0.1 * seed) for seed in (1, 2, 3)]
    keep_best(stored.run, stored.board(*trials), per_family=3)
    keep_best(stored.run, stored.board(*trials), per_family=1)
    assert storage.list_names(f"{stored.run}/best") == ["manifest.json", "yolox-1"]
    assert [SEEDS[member.trial_id] for member in stored.manifest() or []] == [3]


def test_what_somebody_else_put_there_stays_and_stops_nothing(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [stored.trial(seed, 0.1 * seed) for seed in (1, 2, 3)]
    keep_best(stored.run, stored.board(*trials), per_family=2)
    best, other = Path(stored.run) / "best", stored.folder / "other"
    checkpoint_of(other, config_of(8), stored.dataset.location, step=40)
    (best / "notes.txt").write_text("mine")
    (best / "yolox-notes").write_text("mine")
    (best / "link").symlink_to(other)
    (best / "yolox-7").symlink_to(other)
    (best / "yolox-8").write_text("mine")
    (best / "yolox-1" / "notes.txt").write_text("mine")
    storage.write_bytes(str(best / "mine" / "file"), b"mine")
    files = sorted(path.name for path in other.iterdir())
    capsys.readouterr()
    kept = keep_best(stored.run, stored.board(*trials[:2]), per_family=1)
    assert [SEEDS[member.trial_id] for member in kept] == [2]
    assert stored.manifest() == kept
    assert sorted(path.name for path in best.iterdir()) == [
        *("link", "manifest.json", "mine", "notes.txt", "yolox-1", "yolox-7", "yolox-8", "yolox-notes")
    ]
    assert (best / "yolox-1" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in other.iterdir()) == files
    told = capsys.readouterr().out.splitlines()
    assert f"{best}: left alone, not known to vbd: link, mine, notes.txt and 1 more" in told
    assert {f"{best}: left alone, not known to vbd: {name}" for name in ("yolox-7", "yolox-8")} <= set(told)
    with pytest.raises(InputError, match="no trial of the search ended with a score"):
        keep_best(stored.run, stored.board(trial_of(1, math.nan)), per_family=1)
    assert stored.manifest() is None
    assert sorted(path.name for path in (best / "yolox-1").iterdir()) == ["notes.txt"]


def test_a_link_in_the_place_of_a_kept_checkpoint_is_refused(stored: Stored) -> None:
    trial, other = stored.trial(1, 0.5), stored.folder / "other"
    storage.write_bytes(str(other / "config.json"), b"theirs")
    Path(stored.run, "best").mkdir(parents=True)
    Path(stored.run, "best", "yolox-1").symlink_to(other)
    with pytest.raises(InputError, match=r"best/yolox-1: a link to .*/other, whose files would be replaced"):
        keep_best(stored.run, stored.board(trial), per_family=1)
    assert (other / "config.json").read_bytes() == b"theirs"


def kill_after(changes: int, patch: pytest.MonkeyPatch) -> None:
    """Cuts off whoever changes more than so many things in the storage."""
    left = iter(range(changes))

    def cut_off(original: Any) -> Any:
        def change(*args: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return original(*args)

        return change

    for name in ("copy_folder", "delete_file", "write_bytes"):
        patch.setattr(storage, name, cut_off(getattr(storage, name)))


def test_a_driver_killed_at_any_moment_leaves_no_manifest_that_names_what_is_not_there(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (stored.trial(seed, 0.1 * seed) for seed in (1, 2, 3))
    before, after = stored.board(first, second), stored.board(second, third, stored.trial(4, 0.4, **RCNN))
    for changes in range(50):
        keep_best(stored.run, before, per_family=2)
        with monkeypatch.context() as patch:
            kill_after(changes, patch)
            try:
                keep_best(stored.run, after, per_family=2)
                break
            except KeyboardInterrupt:
                pass
        stored.manifest()
        assert [SEEDS[member.trial_id] for member in keep_best(stored.run, after, per_family=2)] == [4, 3, 2]
        stored.manifest()
    assert 10 < changes < 49


def test_a_search_without_any_score_is_told_and_keeps_nothing(stored: Stored) -> None:
    keep_best(stored.run, stored.board(stored.trial(1, 0.5)), per_family=1)
    with pytest.raises(InputError, match="no trial of the search ended with a score"):
        keep_best(stored.run, stored.board(trial_of(1, math.nan)), per_family=1)
    assert stored.manifest() is None
