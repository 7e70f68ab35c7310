import dataclasses
import math
import shutil
from pathlib import Path

import pytest

from tests.reports.searches import BASES, search_of, trial_of, with_detections, write_board, write_trials
from vbd import storage
from vbd.errors import InputError
from vbd.reports.search.read import read_search

TRIALS = search_of(6)


def test_a_search_that_has_ended_is_its_leaderboard(tmp_path: Path) -> None:
    found = read_search(write_board(str(tmp_path), TRIALS))
    assert found.unfinished == ""
    assert found.board.synthetic
    assert [trial.number for trial in found.board.trials] == [t.number for t in sorted(TRIALS, key=lambda t: -t.score)]


def test_a_search_without_a_leaderboard_is_its_trials(tmp_path: Path) -> None:
    found = read_search(write_trials(str(tmp_path), TRIALS))
    assert found.unfinished == "it has no leaderboard yet"
    assert (found.board.preset, found.board.dataset, found.board.synthetic) == ("study", "f00d", False)
    assert found.board.trials[0] == dataclasses.replace(
        max(TRIALS, key=lambda t: t.score), history=found.board.trials[0].history
    )
    assert len(found.board.trials) == 6


def test_trials_on_another_dataset_do_not_count(tmp_path: Path) -> None:
    write_trials(str(tmp_path), TRIALS[:2], dataset="beef")
    assert len(read_search(write_trials(str(tmp_path), TRIALS[2:])).board.trials) == 4


@pytest.mark.parametrize("news", ["a trial", "a report"])
def test_an_older_leaderboard_gives_way_to_what_has_happened_since(tmp_path: Path, news: str) -> None:
    older = TRIALS[:5] if news == "a trial" else [dataclasses.replace(t, history=t.history[:-1]) for t in TRIALS]
    write_trials(write_board(str(tmp_path), older), TRIALS)
    found = read_search(str(tmp_path))
    assert found.unfinished == "it has gone on since its leaderboard was written"
    assert len(found.board.trials) == 6
    assert max(len(trial.history) for trial in found.board.trials) == 8
    assert found.board.synthetic


def test_what_the_leaderboard_refused_stays_refused(tmp_path: Path) -> None:
    refused = dataclasses.replace(TRIALS[0], status="refused", score=math.nan)
    write_trials(write_board(str(tmp_path), [refused, *TRIALS[1:]]), TRIALS)
    found = read_search(str(tmp_path))
    assert found.unfinished == ""
    assert found.board.trials[-1].status == "refused"


@pytest.mark.parametrize(
    ("states", "why"),
    [
        (("unfinished", "finished"), "1 of its trials has not ended"),
        (("unfinished", "died"), "2 of its trials have not ended"),
        (("finished", "stopped"), ""),
    ],
)
def test_a_leaderboard_with_open_trials_is_unfinished(tmp_path: Path, states: tuple[str, str], why: str) -> None:
    trials = [trial_of(base, 0.3, status=status) for base, status in zip(BASES, states, strict=False)]
    assert read_search(write_board(str(tmp_path), trials)).unfinished == why


def test_a_leaderboard_without_kept_checkpoints_is_unfinished(tmp_path: Path) -> None:
    """A search that is stopped between two trials writes one, and none of its trials is open."""
    run = write_board(str(tmp_path), TRIALS)
    storage.delete_file(f"{run}/best/manifest.json")
    assert read_search(run).unfinished == "it was stopped before all of its trials were drawn"


def test_a_run_folder_that_was_moved_is_read_where_it_is(dataset: str, tmp_path: Path) -> None:
    run = str(tmp_path / "before")
    trials = with_detections(run, TRIALS, dataset)
    write_trials(write_board(run, trials), trials)
    shutil.move(run, tmp_path / "after")
    found = read_search(str(tmp_path / "after"), dataset)
    assert storage.exists(found.board.trials[0].detections)
    assert found.dataset is not None


def test_a_running_search_is_as_synthetic_as_its_dataset(dataset: str, tmp_path: Path) -> None:
    assert read_search(write_trials(str(tmp_path / "run"), TRIALS, data=dataset)).board.synthetic
    assert read_search(write_trials(str(tmp_path / "run"), TRIALS), dataset).board.synthetic
    assert not read_search(write_trials(str(tmp_path / "run"), TRIALS, data=f"{tmp_path}/gone")).board.synthetic


def test_a_folder_without_a_search_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither leaderboard\.json nor run\.json"):
        read_search(str(tmp_path))


def test_another_dataset_is_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a search on dataset beef, but .* is f00d"):
        read_search(write_board(str(tmp_path), TRIALS, dataset="beef"), dataset)
