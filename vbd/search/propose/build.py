"""What a search trains next, and who decides it."""

from collections.abc import Sequence
from typing import assert_never

from vbd.config import SearchConfig, TrainConfig, finds_boxes
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.propose.listed import Listed, Several
from vbd.search.propose.population import Population
from vbd.search.propose.proposal import Proposer, unknown
from vbd.search.propose.tpe import OptunaProposer
from vbd.search.propose.warm_start import WarmStart, read_warm_start
from vbd.search.space.dimensions import FamilySpace
from vbd.search.space.draws import block_of, draw_configs, draws_per_family, in_turn, spaces_of


def build_proposer(search: SearchConfig, dataset: PreparedDataset, known: Sequence[Trial] = ()) -> Proposer:
    """The proposer that a search asks for, which goes on from the known trials; prints what a warm start brought.

    Raises InputError for a space that cannot be drawn from, or a warm start that is none.
    """
    if search.scheduler == "population":
        if search.warm_start:
            raise InputError(f"--warm-start {search.warm_start}: a population draws its members anew; leave it out")
        return Population(search, known, dataset=dataset)
    spaces = spaces_of(search, dataset)
    warm = read_warm_start(search.warm_start, spaces, dataset) if search.warm_start else None
    if warm:
        print(warm.describe(search.searcher), flush=True)
    match search.searcher:
        case "random":
            return Listed(_random(search, spaces, known, warm), known)
        case "grid":
            configs = draw_configs(search, dataset)
            return Listed(sorted(configs, key=lambda c: (block_of(c), warm.rank(c))) if warm else configs, known)
        case "optuna":
            return _optuna(search, spaces, known, warm)
        case _:
            assert_never(search.searcher)


def _optuna(
    search: SearchConfig, spaces: Sequence[FamilySpace], known: Sequence[Trial], warm: WarmStart | None
) -> Proposer:
    """Detectors compete for trials by their scores; a classifier's score is another, so it gets its own trials alone."""
    kinds = {of_boxes: [s for s in spaces if finds_boxes(s.family) == of_boxes] for of_boxes in (True, False)}
    proposers, outside = [], 0
    for of_boxes, kind in kinds.items():
        if not kind:
            continue
        # Trials of a kind that this search has no family of stay on the list: the other kind's proposer counts them.
        mine = [trial for trial in known if finds_boxes(trial.config.detector) == of_boxes or not kinds[not of_boxes]]
        proposer = OptunaProposer(kind, mine, seed=search.seed, warm=warm and warm.within(kind))
        proposers.append((frozenset(space.family for space in kind), proposer))
        outside += proposer.outside
    if outside:
        print(f"{outside} of {len(known)} known trials lie outside this space: Optuna does not use them")
    return proposers[0][1] if len(proposers) == 1 else Several(proposers)


def _random(
    search: SearchConfig, spaces: Sequence[FamilySpace], known: Sequence[Trial], warm: WarmStart | None
) -> list[TrainConfig]:
    """Of each family the best of a warm start and then draws, up to its number of trials, known ones in its space included."""
    per_family = []
    for space, draws in zip(spaces, draws_per_family(search, spaces, None), strict=True):
        wanted = dict.fromkeys([*(warm.first(space) if warm else ()), *draws])
        count = sum(space.holds(trial.config) for trial in known)
        left_out = unknown(wanted, known)[max(0, space.trials - count) :]
        per_family.append([config for config in wanted if config not in left_out])  # known ones keep their places
    return in_turn(per_family)
