"""Populations, against trials that are not trained: a score is a function of the config and the step alone."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vbd.config import Candidate, SearchConfig, TrainConfig, check_train_config, config_hash
from vbd.config.phases import rate_at, strength_at, until
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.hashing import stable_hash
from vbd.records import Trial
from vbd.search.kept.trial import trial_id_of
from vbd.search.propose.population import (
    Population,
    describe_population,
    describe_schedules,
    generation_ends,
    replaced_of,
    schedule_of,
)
from vbd.search.propose.proposal import Proposal

YOLOX = Candidate(
    TrainConfig(steps=60, report_every=10, policy="E"),
    choices={"strength": (0.2, 0.3)},
    ranges={"learning_rate": (1e-3, 1e-2)},
    trials=8,
)
RCNN = Candidate(
    TrainConfig(detector="faster_rcnn", variant="resnet50", steps=45, report_every=5),
    choices={"policy": ("A", "E"), "strength": (0.4, 1.0)},
    ranges={"learning_rate": (1e-4, 1e-3)},
    trials=5,
)
SEARCH = SearchConfig("test", (YOLOX, RCNN), scheduler="population", generation_share=0.25)
ONE = replace(SEARCH, candidates=(YOLOX,))


def _towards(best: float) -> Callable[[TrainConfig, int], float]:
    """How well a run has learnt after some steps: each adds the more, the nearer its strength is to the best."""
    return lambda config, step: sum(1 - abs(strength_at(s, config) - best) for s in range(step)) / config.steps


class Disk:
    """A run folder and the processes of its trials, which report one after the other in a random order."""

    def __init__(self, score: Callable[[TrainConfig, int], float] | None = None, *, failing: int = 0):
        self.trials, self._score, self._failing = dict[str, Trial](), score or _towards(0.9), failing
        self._checkpoints, self._held = dict[str, int](), dict[str, int]()

    def begin(self, proposal: Proposal) -> None:
        """A trial goes on from its own checkpoint, or a child from its parent's, which must be there still."""
        config, trial_id = proposal.config, trial_id_of(proposal.config)
        check_train_config(config)
        if trial_id not in self._checkpoints and config.phase_steps:
            begins = config.phase_steps[-1]
            parent = trial_id_of(until(config, begins))
            assert begins in (self._checkpoints[parent], self._held.get(parent))
            self._checkpoints[trial_id] = begins
        self._held[trial_id] = proposal.hold
        trial = self.trials.get(trial_id) or Trial(trial_id, config, config_hash(config), math.nan, 0, "")
        self.trials[trial_id] = replace(trial, status="running")

    def report(self, proposal: Proposal) -> Trial:
        """The trial after its next report, or its failure."""
        config, trial_id = proposal.config, trial_id_of(proposal.config)
        trial = self.trials[trial_id]
        step = min(proposal.until, self._checkpoints.get(trial_id, 0) + config.report_every)
        if self._failing and stable_hash(f"{trial_id}/{step}") % self._failing == 0:
            status = "failed"
        else:
            self._checkpoints[trial_id] = step
            trial = replace(trial, history=[*trial.history, {"step": step, SCORE: self._score(config, step)}])
            ended = "finished" if step == config.steps else "waiting"
            status = ended if step == proposal.until else "running"
        self.trials[trial_id] = replace(trial, status=status)
        return self.trials[trial_id]


def _run(disk: Disk, search: SearchConfig, *, order: int = 0, workers: int = 3, stop_after: float = math.inf) -> int:
    """Runs a search, or goes on with it, to its end or for some reports; returns how many it were."""
    population, rng, reports = Population(search, list(disk.trials.values())), random.Random(order), 0
    running: list[Proposal] = []
    while not population.is_done:
        while len(running) < workers and (proposal := population.propose()):
            assert proposal not in running
            disk.begin(proposal)
            running.append(proposal)
        if reports == stop_after:
            return reports
        chosen = rng.choice(running)
        trial = disk.report(chosen)
        reports += 1
        if trial.status != "running":
            running.remove(chosen)
            population.tell(trial)
    assert not running
    assert population.propose() is None
    return reports


def _outcome(disk: Disk) -> dict[str, Any]:
    return {trial_id: (trial.config, trial.status, list(trial.history)) for trial_id, trial in disk.trials.items()}


@pytest.mark.parametrize(("best", "is_higher"), [(0.9, True), (0.0, False)])
def test_strengths_move_to_where_training_goes_best(best: float, is_higher: bool) -> None:
    disk = Disk(_towards(best))
    _run(disk, replace(ONE, generation_share=1 / 6))
    last = [strength_at(59, trial.config) for trial in disk.trials.values() if trial.status == "finished"]
    assert len(last) == 8
    mean = sum(last) / len(last)
    assert mean > 0.3 if is_higher else mean < 0.2
    assert max(last) > 0.4 if is_higher else min(last) < 0.15


@pytest.mark.parametrize("failing", [0, 15])
def test_the_order_in_which_trials_end_changes_nothing(failing: int) -> None:
    outcomes = []
    for order, workers in enumerate((1, 2, 5, 40)):
        disk = Disk(failing=failing)
        _run(disk, SEARCH, order=order, workers=workers)
        outcomes.append(_outcome(disk))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    statuses = [status for _, status, _ in outcomes[0].values()]
    assert statuses.count("finished") <= 13
    assert ("failed" in statuses) == bool(failing)
    assert len(statuses) <= Population(SEARCH, []).total == 8 + 2 * 3 + 5 + 1 * 3
    if not failing:
        assert len(statuses) == 22


@pytest.mark.parametrize("failing", [0, 7])
def test_a_search_that_is_cut_anywhere_goes_on_to_the_same_end(failing: int) -> None:
    candidates = (replace(YOLOX, trials=5), replace(RCNN, base=replace(RCNN.base, report_every=10), trials=3))
    search = replace(SEARCH, candidates=candidates, generation_share=0.34)
    whole = Disk(failing=failing)
    reports = _run(whole, search)
    assert any(trial.status == "failed" for trial in whole.trials.values()) == bool(failing)
    assert len({trial.config.phase_steps for trial in whole.trials.values()}) > 3
    for stop_after in range(reports):
        disk = Disk(failing=failing)
        assert _run(disk, search, order=stop_after, stop_after=stop_after) == stop_after
        _run(disk, search, order=1)
        assert _outcome(disk) == _outcome(whole)


def test_another_seed_finds_another_schedule() -> None:
    disks = [Disk(), Disk()]
    for seed, disk in enumerate(disks):
        _run(disk, replace(SEARCH, seed=seed))
    assert not set(disks[0].trials) & set(disks[1].trials)


def _tell(population: Population, config: TrainConfig, scores: dict[int, float], status: str = "waiting") -> Trial:
    history = [{"step": step, SCORE: score} for step, score in scores.items()]
    trial = Trial(trial_id_of(config), config, config_hash(config), math.nan, 0, "", status, history=history)
    population.tell(trial)
    return trial


def _proposals(population: Population) -> list[Proposal]:
    return list(iter(population.propose, None))


def test_the_worst_quarter_gives_its_places_to_children_of_the_best() -> None:
    population = Population(ONE, [])
    first = _proposals(population)
    assert {(proposal.until, proposal.hold) for proposal in first} == {(20, 0)}
    # In any order of scores; one has none, and one failed.
    scores = [0.3, 0.8, math.nan, 0.5, 0.7, 0.4, 0.6]
    for proposal, score in zip(first[:7], scores, strict=True):
        assert population.propose() is None
        _tell(population, proposal.config, {10: 0.99, 20: score})
    _tell(population, first[7].config, {10: 0.99}, "failed")
    second = _proposals(population)
    assert {(proposal.until, proposal.hold) for proposal in second} == {(30, 20)}
    children, others = second[:2], second[2:]
    assert {proposal.config for proposal in others} == {first[i].config for i in (0, 1, 3, 4, 5, 6)}
    for child in children:
        config = child.config
        assert until(config, 20) in (first[1].config, first[4].config)
        assert config.phase_steps == (20,)
        assert config.phase_rates[0] in (0.8, 1.2)
        assert config.phase_strengths[0] in (0.16, 0.2, 0.24, 0.3, 0.36)
    assert set(population.replaced) == {trial_id_of(first[2].config)}  # the other says itself that it failed
    (reason,) = population.replaced.values()
    assert reason.startswith("population: a child of ")
    assert reason.endswith(" took its place at step 20")


def test_children_keep_what_their_parent_had_learnt_to_do() -> None:
    """A schedule grows from generation to generation; policy A has no strength to change, and none is above 1."""
    strong = replace(YOLOX, choices={"policy": ("A", "E"), "strength": (0.9, 1.0)})
    disk = Disk(lambda config, step: stable_hash(f"{trial_id_of(config)}/{step}") / 2**64)
    _run(disk, replace(ONE, candidates=(strong,)))
    configs = [trial.config for trial in disk.trials.values()]
    assert max(len(config.phase_steps) for config in configs) >= 2
    for config in configs:
        for step in config.phase_steps:
            before = until(config, step)
            assert any(before == other for other in configs)
            factor = rate_at(step, config) / rate_at(step, before)
            assert min(abs(factor - 0.8), abs(factor - 1.2)) < 1e-3
            if config.policy == "A":
                assert set(config.phase_strengths) == {1.0}
            else:
                old, new = strength_at(step, before), strength_at(step, config)
                assert min(abs(new - value) for value in (0.8 * old, min(1.0, 1.2 * old), 0.9, 1.0)) < 1e-3
    assert {config.policy for config in configs if config.phase_steps} == {"A", "E"}


def test_a_family_does_not_wait_for_another() -> None:
    population = Population(SEARCH, [])
    for proposal in _proposals(population):
        if proposal.config.detector == "faster_rcnn":
            _tell(population, proposal.config, {proposal.until: 0.5})
    again = _proposals(population)
    assert {proposal.config.detector for proposal in again} == {"faster_rcnn"}
    assert len(again) == 5


def test_the_first_proposals_come_from_every_family() -> None:
    first = [proposal.config.detector for proposal in _proposals(Population(SEARCH, []))]
    assert first[:4] == ["yolox", "faster_rcnn"] * 2
    assert len(first) == 13


def test_a_population_in_which_all_fail_comes_to_an_end() -> None:
    population = Population(ONE, [])
    for proposal in _proposals(population):
        assert not population.is_done
        _tell(population, proposal.config, {}, "failed")
    assert population.is_done
    assert population.propose() is None
    assert population.replaced == {}


def test_few_members_that_are_left_give_only_children_that_differ() -> None:
    """One member of policy A has two different children."""
    candidate = replace(YOLOX, choices={"policy": ("A",)}, trials=12)
    population = Population(replace(ONE, candidates=(candidate,)), [])
    first = _proposals(population)
    _tell(population, first[0].config, {20: 0.5})
    for proposal in first[1:]:
        _tell(population, proposal.config, {}, "failed")
    second = [proposal.config for proposal in _proposals(population)]
    assert len(second) == len(set(second)) == 3
    assert sorted(config.phase_rates for config in second) == [(), (0.8,), (1.2,)]


def test_a_trial_that_died_is_tried_again_unless_the_others_went_on_without_it() -> None:
    population, search = Population(ONE, []), ONE
    first = [proposal.config for proposal in _proposals(population)]
    known = [_tell(population, config, {20: i / 10}) for i, config in enumerate(first[:7])]
    died = _tell(population, first[7], {10: 0.1}, "died")
    children = [proposal.config for proposal in _proposals(population)[:2]]
    for status in ("died", "running"):
        trials = [*known, replace(died, status=status)]
        # Nothing on disk tells that there had been a decision.
        assert [p.config for p in _proposals(Population(search, trials))] == [first[7]]
        begun = replace(died, trial_id=trial_id_of(children[0]), config=children[0], status="running", history=[])
        stopped = replace(known[0], status="stopped")
        further = replace(known[5], history=[*known[5].history, {"step": 30, SCORE: 0.5}])
        for evidence in ([*trials, begun], [stopped, *trials[1:]], [*trials[:5], further, *trials[6:]]):
            proposed = [proposal.config for proposal in _proposals(Population(search, evidence))]
            assert proposed[:2] == children
            assert first[7] not in proposed


def test_what_was_interrupted_goes_on_before_what_has_not_begun() -> None:
    first = [proposal.config for proposal in _proposals(Population(ONE, []))]
    begun = Trial(trial_id_of(first[5]), first[5], config_hash(first[5]), math.nan, 0, "", "running")
    assert [p.config for p in _proposals(Population(ONE, [begun]))] == [first[5], *first[:5], *first[6:]]


@pytest.mark.parametrize(
    ("share", "ends"),
    [
        (0.25, (20, 30, 40, 60)),
        (0.2, (10, 20, 40, 50, 60)),
        (0.4, (20, 50, 60)),
        (0.01, (10, 20, 30, 40, 50, 60)),
        (1.0, (60,)),
        (0.5, (30, 60)),
    ],
)
def test_generations_end_at_reports(share: float, ends: tuple[int, ...]) -> None:
    assert generation_ends(YOLOX.base, share) == ends


def test_the_last_generation_ends_at_the_last_step_even_without_a_report_there() -> None:
    assert generation_ends(replace(YOLOX.base, steps=55), 0.5) == (30, 55)


@pytest.mark.parametrize(("members", "replaced"), [(1, 0), (2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (24, 6)])
def test_a_quarter_is_replaced_but_at_least_one(members: int, replaced: int) -> None:
    assert replaced_of(members) == replaced


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (replace(ONE, generation_share=0.0), r"generation_share is 0\.0"),
        (replace(ONE, candidates=(replace(YOLOX, choices={"fold": (0, 1)}),)), "fold cannot be varied"),
        (
            replace(
                ONE,
                candidates=(
                    replace(
                        YOLOX, base=replace(YOLOX.base, phase_steps=(9,), phase_strengths=(0.1,), phase_rates=(1.0,))
                    ),
                ),
            ),
            "phase_steps are what a population finds",
        ),
    ],
)
def test_what_makes_no_population_is_told(search: SearchConfig, message: str) -> None:
    with pytest.raises(InputError, match=f"preset test: .*{message}|preset test: {message}"):
        Population(search, [])


def test_a_population_is_described_by_its_numbers() -> None:
    assert describe_population(SEARCH).splitlines() == [
        "yolox: 8 members, 4 generations, to steps 20, 30, 40, 60; after each but the last the worst 2 are replaced, "
        "14 trials at most",
        "faster_rcnn: 5 members, 4 generations, to steps 10, 20, 35, 45; after each but the last the worst 1 are "
        "replaced, 8 trials at most",
    ]


def test_a_schedule_tells_strengths_rates_and_whose_they_were() -> None:
    first = replace(YOLOX.base, strength=0.3)
    second = replace(first, phase_steps=(20,), phase_strengths=(0.36,), phase_rates=(0.8,))
    third = replace(second, phase_steps=(20, 40), phase_strengths=(0.36, 0.432), phase_rates=(0.8, 1.0))
    trials = [Trial(trial_id_of(c), c, config_hash(c), math.nan, 0, "") for c in (first, second, third)]
    assert schedule_of(trials[2]) == "0.30 to step 20, 0.36 (rate x 0.8) to 40, 0.43 to 60"
    assert schedule_of(trials[2], trials) == (
        f"0.30 to step 20 in {trials[0].trial_id}, 0.36 (rate x 0.8) to 40 in {trials[1].trial_id}, 0.43 to 60"
    )
    assert schedule_of(trials[0], trials) == "0.30 to step 60"
    assert schedule_of(replace(trials[1], history=[{"step": 30, SCORE: 0.1}])) == (
        "0.30 to step 20, 0.36 (rate x 0.8) to 30"
    )
    scored = [replace(t, score=score, checkpoint="there") for t, score in zip(trials, (0.1, 0.3, 0.2), strict=True)]
    assert describe_schedules(scored) == (
        f"yolox: best {trials[1].trial_id}, 0.30 to step 20 in {trials[0].trial_id}, 0.36 (rate x 0.8) to 60"
    )
    idle = replace(second, policy="A", strength=1.0, phase_strengths=(1.0,))
    assert schedule_of(replace(trials[1], config=idle)) == "rate x 1 to step 20, rate x 0.8 to 60"
