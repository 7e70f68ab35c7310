import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState

from vbd.config import Candidate, SearchConfig, TrainConfig, config_hash
from vbd.records import Trial
from vbd.search.kept.trial import trial_id_of
from vbd.search.propose.proposal import Proposer
from vbd.search.propose.tpe import OptunaProposer
from vbd.search.propose.warm_start import Hint, WarmStart
from vbd.search.space.draws import spaces_of

RETINA = TrainConfig(detector="retinanet", variant="resnet18", steps=400)
SPACES = spaces_of(
    SearchConfig(
        preset="test",
        candidates=(
            Candidate(
                TrainConfig(),
                choices={
                    "policy": ("A", "B", "E"),
                    "strength": (0.3, 0.6, 1.0),
                    "sampler": ("repeat_factor", "class_aware"),
                    "repeat_threshold": (0.1, 0.2),
                },
                ranges={"learning_rate": (1e-4, 1e-2), "warmup_steps": (100, 900), "normal_share": (0.0, 0.5)},
                trials=24,
            ),
            Candidate(
                RETINA,
                choices={"anchor_ratios": ((), (0.5, 2.0))},
                ranges={"learning_rate": (1e-5, 1e-3)},
                trials=8,
            ),
        ),
    )
)
POLICIES = spaces_of(
    SearchConfig(
        preset="test",
        candidates=(Candidate(TrainConfig(), choices={"policy": ("A", "B"), "strength": (0.5, 1.0)}, trials=9),),
    )
)


def _trial(config: TrainConfig, score: float, status: str = "finished", **fields: Any) -> Trial:
    return Trial(trial_id_of(config), config, config_hash(config), score, config.steps, "", status, **fields)


def _run(proposer: Proposer, score: Any = lambda config: 0.1) -> list[TrainConfig]:
    """All proposals, one after the other."""
    configs = []
    while (proposal := proposer.propose()) is not None:
        configs.append(proposal.config)
        proposer.tell(_trial(proposal.config, score(proposal.config)))
    assert proposer.is_done
    return configs


def test_every_proposal_is_new_and_lies_in_its_familys_space() -> None:
    proposer = OptunaProposer(SPACES, seed=1)
    assert proposer.total == 32
    configs = _run(proposer)
    assert len(configs) == len(set(configs)) == 32
    for config in configs:
        (space,) = (space for space in SPACES if space.family == config.detector)
        values = space.values(config)
        assert values is not None
        assert ("strength" in values) == (config.policy != "A")
        assert config.learning_rate == float(f"{config.learning_rate:.3g}")


def test_each_family_gets_half_of_its_trials_and_the_better_one_more() -> None:
    configs = _run(OptunaProposer(SPACES, seed=3), lambda config: 0.5 if config.detector == "retinanet" else 0.1)
    counts = Counter(config.detector for config in configs)
    assert counts["yolox"] >= 12
    assert counts["retinanet"] > 8
    other = _run(OptunaProposer(SPACES, seed=3), lambda config: 0.1 if config.detector == "retinanet" else 0.5)
    assert Counter(config.detector for config in other)["retinanet"] < counts["retinanet"]


def test_it_learns_where_the_scores_are_high() -> None:
    def score(config: TrainConfig) -> float:
        return 1 - abs(math.log10(config.learning_rate) + 2.5) if config.policy == "E" else 0.0

    yolox = tuple(replace(space, trials=60) for space in SPACES if space.family == "yolox")
    configs = _run(OptunaProposer(yolox, seed=0), score)
    assert sum(config.policy == "E" for config in configs[30:]) > 20
    assert sum(map(score, configs[30:])) > 1.5 * sum(map(score, configs[:30]))


def test_a_small_space_is_run_whole_and_then_it_is_done() -> None:
    proposer = OptunaProposer(POLICIES, seed=0)
    told = {(config.policy, config.strength) for config in _run(proposer)}
    assert told == {("A", 1.0), ("B", 0.5), ("B", 1.0)}
    assert proposer.total == 3


def test_what_is_trained_is_not_drawn_again_and_waits_for_its_score() -> None:
    (space,) = POLICIES
    proposer = OptunaProposer((replace(space, trials=20),), seed=0)
    configs = {proposal.config for proposal in (proposer.propose() for _ in range(3)) if proposal}
    assert len(configs) == 3
    assert proposer.propose() is None
    assert proposer.is_done
    for config in configs:
        proposer.tell(_trial(config, 0.2))
    assert {trial.state for trial in proposer._study.trials} == {TrialState.COMPLETE}


def test_trials_are_told_by_how_they_ended() -> None:
    proposer = OptunaProposer(SPACES, seed=2)
    ends = (("finished", 0.4), ("stopped", 0.2), ("failed", math.nan), ("finished", math.nan), ("died", 0.1))
    for status, score in ends:
        proposal = proposer.propose()
        assert proposal is not None
        half = proposal.config.steps // 2
        trial = replace(_trial(proposal.config, score, status), steps=half // 2, history=[{"step": half}])
        proposer.tell(trial)
        proposer.tell(replace(trial, score=0.9))  # once is enough
    told = [(trial.state, trial.value, trial.intermediate_values) for trial in proposer._study.trials]
    assert told == [
        (TrialState.COMPLETE, 0.4, {}),
        (TrialState.PRUNED, 0.2, {500: 0.2}),
        *[(TrialState.FAIL, None, {})] * 3,
    ]


@pytest.mark.parametrize("known", [0, 20])
def test_a_later_session_knows_what_an_earlier_one_found(known: int) -> None:
    first = OptunaProposer(SPACES, seed=1)
    configs = _run(first, lambda config: config.learning_rate)[: known or None]
    trials = [_trial(config, config.learning_rate, number=i) for i, config in enumerate(configs)]
    trials[1] = replace(trials[1], status="running")
    trials[2] = replace(trials[2], status="stopped", steps=trials[2].config.steps // 4)
    elsewhere = _trial(replace(TrainConfig(), image_size=256), 0.9)
    second = OptunaProposer(SPACES, [*trials, elsewhere], seed=1)
    assert second.outside == 1
    told = {tuple(sorted(t.params.items())): (t.state, t.value) for t in second._study.trials}
    for trial in trials:
        params = tuple(sorted((second._params(trial.config) or {}).items()))
        state = {"stopped": TrialState.PRUNED, "finished": TrialState.COMPLETE}.get(trial.status)
        assert told.get(params) == ((state, trial.score) if state else None)
    rest = _run(second)
    assert rest[0] == configs[1]
    assert set(rest[1:]).isdisjoint(configs)
    assert second.total == 33  # the trial outside is not one of the 32
    assert len(rest) == 32 - len(trials) + 1


def test_a_warm_start_on_the_same_dataset_is_told_and_on_another_run_first() -> None:
    inside = [replace(TrainConfig(), learning_rate=r, sampler="class_aware", warmup_steps=100) for r in (1e-3, 1e-2)]
    hints = (Hint(inside[0], 0.4, 1.0), Hint(inside[1], 0.3, 0.25))
    same = OptunaProposer(SPACES, seed=0, warm=WarmStart("r", is_same_dataset=True, hints=hints, outside=0))
    told = [(trial.state, trial.value, trial.intermediate_values) for trial in same._study.trials]
    assert told == [(TrialState.COMPLETE, 0.4, {}), (TrialState.PRUNED, 0.3, {250: 0.3})]
    assert same.total == 32
    other = OptunaProposer(SPACES, seed=0, warm=WarmStart("r", is_same_dataset=False, hints=hints, outside=0))
    assert not other._study.trials
    assert [proposal.config for proposal in (other.propose(), other.propose()) if proposal] == inside
    later = OptunaProposer(
        SPACES, [_trial(inside[0], 0.1)], seed=0, warm=WarmStart("r", is_same_dataset=False, hints=hints, outside=0)
    )
    following = later.propose()
    assert following is not None
    assert following.config == inside[1]
