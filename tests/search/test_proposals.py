import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.search.datasets import labels_alone
from vbd.config import VARIANTS, Candidate, SearchConfig, TrainConfig, config_hash
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.kept.leaderboard import Leaderboard, ranked, write_leaderboard
from vbd.search.kept.trial import trial_id_of
from vbd.search.propose.build import build_proposer
from vbd.search.propose.listed import Listed
from vbd.search.propose.population import Population
from vbd.search.propose.proposal import Proposal, Proposer
from vbd.search.propose.tpe import OptunaProposer
from vbd.search.space.draws import draw_configs

RETINA = TrainConfig(detector="retinanet", variant="resnet18")
SEARCH = SearchConfig(
    preset="test",
    candidates=(
        Candidate(TrainConfig(), choices={"policy": ("A", "B")}, ranges={"learning_rate": (1e-4, 1e-2)}, trials=8),
        Candidate(RETINA, choices={"policy": ("A", "E")}, ranges={"learning_rate": (1e-5, 1e-3)}, trials=4),
    ),
)
GRID = replace(
    SEARCH,
    searcher="grid",
    candidates=(Candidate(TrainConfig(), choices={"policy": ("A", "B", "C"), "strength": (0.5,), "seed": (0, 1)}),),
)


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return labels_alone(tmp_path / "data", [0], [3])


def _trial(config: TrainConfig, status: str = "finished", *, score: float = 0.1, number: int = 0) -> Trial:
    return Trial(trial_id_of(config), config, config_hash(config), score, config.steps, "", status, number=number)


def _all(proposer: Proposer) -> list[TrainConfig]:
    configs = []
    while (proposal := proposer.propose()) is not None:
        assert proposal == Proposal(proposal.config, until=proposal.config.steps)
        configs.append(proposal.config)
    assert proposer.is_done
    return configs


def _finished_run(tmp_path: Path, *trials: Trial, fingerprint: str = "f" * 16) -> str:
    run = str(tmp_path / "earlier")
    write_leaderboard(run, Leaderboard("search", fingerprint, True, ranked(trials)))
    return run


def test_a_random_search_proposes_its_draws_once_families_in_turn(dataset: PreparedDataset) -> None:
    proposer = build_proposer(SEARCH, dataset)
    assert proposer.total == 12
    assert not proposer.is_done
    assert _all(proposer) == draw_configs(SEARCH, dataset)


@pytest.mark.parametrize("search", [SEARCH, GRID], ids=["random", "grid"])
def test_a_search_goes_on_with_what_was_cut_off_and_leaves_out_what_has_ended(
    search: SearchConfig, dataset: PreparedDataset
) -> None:
    draws = draw_configs(search, dataset)
    states = ("finished", "running", "failed", "waiting", "stopped")
    known = [_trial(config, state, number=i) for i, (config, state) in enumerate(zip(draws, states, strict=False))]
    proposer = build_proposer(search, dataset, known[::-1])
    assert proposer.total == len(draws)
    assert _all(proposer) == [draws[1], draws[3], *draws[5:]]


def test_a_search_that_is_extended_counts_what_is_there(dataset: PreparedDataset) -> None:
    known = [_trial(config) for config in draw_configs(SEARCH, dataset)]
    more = replace(SEARCH, candidates=tuple(replace(candidate, trials=10) for candidate in SEARCH.candidates))
    proposer = build_proposer(more, dataset, known)
    assert proposer.total == 20
    new = _all(proposer)
    assert [config.detector for config in new].count("yolox") == 2
    assert [config.detector for config in new].count("retinanet") == 6
    # Stopped half-way, it goes on to the very same trials.
    again = build_proposer(more, dataset, [*known, *map(_trial, new[:3])])
    assert _all(again) == new[3:]
    # A search for fewer trials has none to add.
    assert _all(build_proposer(replace(SEARCH), dataset, [*known, *map(_trial, new)])) == []


def test_how_a_trial_ended_changes_no_list() -> None:
    proposer = Listed([TrainConfig(seed=0), TrainConfig(seed=1)])
    first = proposer.propose()
    assert first is not None
    proposer.tell(_trial(first.config))
    assert _all(proposer) == [TrainConfig(seed=1)]


def test_each_searcher_has_its_proposer(dataset: PreparedDataset) -> None:
    assert isinstance(build_proposer(replace(SEARCH, searcher="optuna"), dataset), OptunaProposer)
    assert isinstance(build_proposer(replace(SEARCH, scheduler="population"), dataset), Population)
    with pytest.raises(InputError, match=r"--warm-start runs/a: a population"):
        build_proposer(replace(SEARCH, scheduler="population", warm_start="runs/a"), dataset)


def test_a_warm_start_runs_the_best_of_each_family_first(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(TrainConfig(), steps=100, report_every=10, warmup_steps=5, policy="B")
    good = [replace(short, learning_rate=rate, seed=7) for rate in (1e-3, 2e-3, 3e-3)]
    outside = [replace(short, learning_rate=0.5), replace(short, image_size=256)]
    retina = replace(RETINA, steps=100, learning_rate=1e-4)
    trials = [
        *(_trial(config, score=0.3 - i / 10) for i, config in enumerate(good)),
        *(_trial(config, score=0.9) for config in outside),
        _trial(replace(short, learning_rate=4e-3), "failed", score=math.nan),
        _trial(retina, score=0.05),
    ]
    search = replace(SEARCH, warm_start=_finished_run(tmp_path, *trials, fingerprint="another"))
    configs = _all(build_proposer(search, dataset))
    assert len(configs) == len(set(configs)) == 12
    # A quarter of eight and of four trials, with the steps of this search.
    here = replace(TrainConfig(), policy="B")
    assert configs[:3] == [
        replace(here, learning_rate=1e-3),
        replace(RETINA, learning_rate=1e-4),
        replace(here, learning_rate=2e-3),
    ]
    assert (
        "4 of its 6 scored configurations lie in this space; the best of them are run first" in capsys.readouterr().out
    )
    # What is known of them is not run again.
    assert _all(build_proposer(search, dataset, [_trial(config) for config in configs[:5]])) == configs[5:]


def test_a_warm_start_orders_a_grid_within_its_blocks(dataset: PreparedDataset, tmp_path: Path) -> None:
    earlier = [
        _trial(replace(TrainConfig(), policy=policy, strength=0.5, seed=9), score=score)
        for policy, score in (("C", 0.3), ("B", 0.2))
    ]
    search = replace(GRID, warm_start=_finished_run(tmp_path, *earlier))
    configs = _all(build_proposer(search, dataset))
    assert [(config.seed, config.policy) for config in configs] == [(s, p) for s in (0, 1) for p in "CBA"]
    assert set(configs) == set(draw_configs(GRID, dataset))


def test_a_warm_start_that_is_no_run_is_told(dataset: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no leaderboard\.json"):
        build_proposer(replace(SEARCH, warm_start=str(tmp_path)), dataset)


def test_a_classifier_gets_its_own_trials_however_high_its_scores(prepared: str) -> None:
    """Its score is another than the detectors', which Optuna must not hold against it."""
    choices = {"seed": tuple(range(20))}
    candidates = tuple(
        Candidate(TrainConfig(detector=family, variant=VARIANTS[family][0]), choices=choices, trials=4)
        for family in ("yolox", "efficientdet", "classifier")
    )
    search = SearchConfig("mixed", candidates, searcher="optuna")
    proposer = build_proposer(search, open_dataset(prepared))
    proposed: list[str] = []
    while not proposer.is_done:
        proposal = proposer.propose()
        assert proposal is not None
        config = proposal.config
        proposed.append(config.detector)
        score = 0.95 if config.detector == "classifier" else 0.1 + 0.2 * (config.detector == "yolox")
        proposer.tell(Trial(trial_id_of(config), config, config_hash(config), score, config.steps, ""))
    assert len(proposed) == proposer.total == 12
    assert proposed.count("classifier") == 4
    assert proposed[:4].count("classifier") == 2  # in turn with the detectors
    assert min(proposed.count("yolox"), proposed.count("efficientdet")) >= 2
