"""How many trials a run gets when it is extended: each searcher, scheduler and kind of extension, with fake trials."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.search.datasets import labels_alone
from vbd.config import VARIANTS, Candidate, Family, SearchConfig, TrainConfig, config_hash
from vbd.data.prepared import PreparedDataset
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.cost.forecast import Devices, forecast
from vbd.search.cost.rates import Rate, combination_of
from vbd.search.kept.trial import ENDED, trial_id_of
from vbd.search.propose.build import build_proposer
from vbd.search.propose.proposal import Proposal, Proposer

Kind = tuple[str, str]  # searcher, scheduler
RANDOM, OPTUNA = ("random", "halving"), ("optuna", "halving")
GRID, POPULATION = ("grid", "halving"), ("random", "population")
SEARCHERS = (RANDOM, OPTUNA, GRID, POPULATION, ("random", "fifo"), ("optuna", "fifo"), ("grid", "fifo"))


def _search(
    kind: Kind, *families: Family, trials: int = 6, rates: tuple[float, ...] = (), **fields: Any
) -> SearchConfig:
    """A search of 40 steps by strengths and rates; a grid of six combinations unless there are other `rates`."""
    choices: dict[str, tuple[Any, ...]] = {"strength": (0.3, 0.6)}
    drawn: dict[str, Any] = {"ranges": {"learning_rate": (1e-3, 1e-2)}}
    if kind[0] == "grid" or rates:
        drawn = {"choices": choices | {"learning_rate": rates or (1e-3, 2e-3, 4e-3)}}
    base = TrainConfig(policy="E", steps=40, report_every=10)
    candidates = tuple(
        Candidate(
            replace(base, **{"detector": family, "variant": VARIANTS[family][0]} | fields),
            trials=trials,
            **{"choices": choices} | drawn,
        )
        for family in families
    )
    searcher, scheduler = kind
    return SearchConfig("test", candidates, searcher=searcher, scheduler=scheduler)  # type: ignore[arg-type]


def _ended(proposal: Proposal, number: int) -> Trial:
    """What Tune would have made of a proposal: the later, the better."""
    config = proposal.config
    history = [{"step": step, SCORE: number / 100} for step in range(10, proposal.until + 1, 10)]
    status = "finished" if proposal.until == config.steps else "waiting"
    hash_ = config_hash(config)
    return Trial(
        hash_[:10], config, hash_, number / 100, proposal.until, "", status=status, history=history, number=number
    )


def _run(proposer: Proposer, known: Sequence[Trial] = ()) -> dict[str, Trial]:
    """All trials at the end, by id."""
    trials = {trial.trial_id: trial for trial in known}
    while (proposal := proposer.propose()) is not None:
        there = trials.get(trial_id_of(proposal.config))
        trials[trial_id_of(proposal.config)] = trial = _ended(proposal, there.number if there else len(trials))
        proposer.tell(trial)
        for loser in proposer.replaced:
            trials[loser] = replace(trials[loser], status="stopped")
    assert proposer.is_done
    return trials


def _new_trials(first: SearchConfig, second: SearchConfig, dataset: PreparedDataset) -> Counter[str]:
    """How many trials of each family the second search adds; what is told before it starts agrees with that."""
    known = list(_run(build_proposer(first, dataset)).values())
    assert all(trial.status in ENDED for trial in known)
    proposer = build_proposer(second, dataset, known)
    rates = {combination_of(config): Rate(1, 0, 0) for config in proposer.planned}
    before = forecast(proposer.planned, known, rates, search=second, devices=Devices("CPU", 2, 1))
    total, to_come = proposer.total, len(proposer.planned) - len(known)
    trials = _run(proposer, known)
    assert len(trials) == total == proposer.total
    assert {trial.trial_id for trial in known} <= trials.keys()
    new = [trial for trial_id, trial in trials.items() if trial_id not in {one.trial_id for one in known}]
    if second.scheduler != "population":  # of which children are not planned: they take over their parents' steps
        assert (before.trials, to_come) == (total, len(new))
        # As trials come, they replace what was planned, so that the number stays.
        for count in range(len(new) + 1):
            seen = [*known, *new[:count]]
            again = forecast(proposer.planned, seen, rates, search=second, devices=Devices("CPU", 2, 1))
            assert again.trials == total
    return Counter(trial.config.detector for trial in new)


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return labels_alone(tmp_path / "data", [0], [3])


@pytest.mark.parametrize("kind", SEARCHERS, ids="-".join)
def test_a_new_family_gets_its_own_trials(kind: Kind, dataset: PreparedDataset) -> None:
    new = _new_trials(_search(kind, "yolox"), _search(kind, "efficientdet"), dataset)
    assert new == {"efficientdet": 6 + 3 * (kind == POPULATION)}  # of four generations three replace one each


@pytest.mark.parametrize("kind", SEARCHERS, ids="-".join)
def test_a_classifier_beside_detectors_gets_its_own_trials(kind: Kind, dataset: PreparedDataset) -> None:
    for first, second in (("yolox", "classifier"), ("classifier", "yolox")):
        new = _new_trials(_search(kind, first), _search(kind, second), dataset)  # type: ignore[arg-type]
        assert new == {second: 6 + 3 * (kind == POPULATION)}


@pytest.mark.parametrize(
    ("kind", "new"), [(RANDOM, 6), (OPTUNA, 6), (GRID, 0), (POPULATION, 12 + 3 * 3)], ids=lambda x: str(x)
)
def test_more_trials_are_added_to_those_of_the_family(kind: Kind, new: int, dataset: PreparedDataset) -> None:
    """A grid has no number of trials; a larger population is drawn anew."""
    first = _search(kind, "yolox", "efficientdet", trials=6)
    found = _new_trials(first, _search(kind, "yolox", trials=12), dataset)
    # Where families compete, one may have had more than its six before.
    if kind == OPTUNA:
        known = Counter(trial.config.detector for trial in _run(build_proposer(first, dataset)).values())
        assert known.total() == 12
        new = 12 - known["yolox"]
    assert found == Counter({"yolox": new} if new else {})


@pytest.mark.parametrize("kind", SEARCHERS, ids="-".join)
def test_other_steps_are_other_trials(kind: Kind, dataset: PreparedDataset) -> None:
    longer = _search(kind, "yolox", steps=80, report_every=20)
    assert _new_trials(_search(kind, "yolox"), longer, dataset) == {"yolox": 6 + 3 * (kind == POPULATION)}


@pytest.mark.parametrize("kind", SEARCHERS, ids="-".join)
def test_on_another_dataset_no_trial_is_known(kind: Kind, dataset: PreparedDataset) -> None:
    """`read_trials` leaves out those of the former dataset, so the whole search is run."""
    search = _search(kind, "yolox")
    assert len(_run(build_proposer(search, dataset))) == build_proposer(search, dataset).total
    assert build_proposer(search, dataset).total == 6 + 3 * (kind == POPULATION)


@pytest.mark.parametrize(("kind", "new"), [(RANDOM, 4), (OPTUNA, 4), (GRID, 4)], ids=lambda x: str(x))
def test_other_values_are_trained_and_those_in_both_spaces_are_not_trained_again(
    kind: Kind, new: int, dataset: PreparedDataset
) -> None:
    first = _search(kind, "yolox", rates=(1e-3, 2e-3, 4e-3))
    assert _new_trials(first, _search(kind, "yolox", rates=(4e-3, 5e-3, 6e-3)), dataset) == {"yolox": new}


@pytest.mark.parametrize(("kind", "trials"), [(RANDOM, 8), (OPTUNA, 8)], ids=lambda x: str(x))
def test_a_space_that_holds_fewer_is_planned_and_trained_whole(
    kind: Kind, trials: int, dataset: PreparedDataset
) -> None:
    first = _search(kind, "yolox", trials=4, rates=(1e-3, 2e-3, 4e-3))
    more = _search(kind, "yolox", trials=trials, rates=(1e-3, 2e-3, 4e-3))
    assert _new_trials(first, more, dataset) == {"yolox": 2}


@pytest.mark.parametrize("kind", SEARCHERS, ids="-".join)
def test_the_same_search_again_adds_nothing(kind: Kind, dataset: PreparedDataset) -> None:
    search = _search(kind, "yolox", "efficientdet")
    assert _new_trials(search, search, dataset) == Counter()


def test_a_family_that_others_outdid_gets_no_more_trials_when_the_search_goes_on(dataset: PreparedDataset) -> None:
    """Half of each family's trials go where the scores lead; a restart does not make up for that."""
    search = _search(OPTUNA, "yolox", "efficientdet")
    known = list(_run(build_proposer(search, dataset)).values())
    counts = Counter(trial.config.detector for trial in known)
    moved = build_proposer(search, dataset, known)
    assert (counts.total(), moved.total, moved.is_done) == (12, 12, True)
    third = build_proposer(_search(OPTUNA, "yolox", "efficientdet", "fcos"), dataset, known)
    assert third.total == 18
    new = Counter(t.config.detector for t in _run(third, known).values()) - counts
    assert new.total() == 6
    assert new["fcos"] >= 3


@pytest.mark.parametrize("kind", [RANDOM, OPTUNA, GRID], ids="-".join)
def test_trials_outside_the_new_space_that_were_cut_off_are_resumed(kind: Kind, dataset: PreparedDataset) -> None:
    first = list(_run(build_proposer(_search(kind, "yolox"), dataset)).values())
    known = [replace(first[0], status="running"), *first[1:]]
    proposer = build_proposer(_search(kind, "efficientdet"), dataset, known)
    resumed = proposer.propose()
    assert resumed is not None
    assert resumed.config == first[0].config
    proposer.tell(first[0])
    assert proposer.total == 12
    assert len(_run(proposer, first)) == 12
