"""The whole recipe of an ensemble, from the members' raw detections to what is submitted, as it lives in `ensemble.json`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from vbd import storage
from vbd.commands import job_command
from vbd.config import checked
from vbd.config.checked import NanForNull, SafeName, Score, between
from vbd.ensemble.normal.gates import Gate
from vbd.ensemble.normal.no_finding import Evidence, NoFinding, mean_logits
from vbd.ensemble.scores.calibrate import Calibration
from vbd.errors import InputError
from vbd.fusion.detections import FusionOptions, fuse_all
from vbd.records import Detections

SCHEMA = 2
FILE = "ensemble.json"
Difference = Annotated[float, between(-1, 1), NanForNull()]


@dataclass(frozen=True)
class Recipe:
    """What turns raw detections of members into those of the ensemble."""

    weights: dict[str, float]  # of the detectors that are fused; empty where there are classifiers alone
    options: FusionOptions
    calibrations: dict[str, Calibration]  # of each detector with a weight
    classifiers: tuple[str, ...]  # whose mean logit P(no finding) is told from; empty where boxes alone tell it
    no_finding: NoFinding
    gate: Gate

    @property
    def members(self) -> tuple[str, ...]:
        """Whose detections `apply` needs."""
        return (*self.weights, *self.classifiers)

    def apply(self, found: Mapping[str, Sequence[Sequence[Detections]]]) -> list[Detections]:
        """Raw detections of each checkpoint of each member -> calibrated, fused, with P(no finding), behind the gate.

        A checkpoint is calibrated before it is fused with its member's others: the fit was made on single checkpoints. A
        quota is a share of the images of this call.
        """
        # By name: JSON does not keep the order of members, on which ties depend.
        fused = [
            _fuse_checkpoints([self.calibrations[name].apply(run) for run in found[name]], self.options)
            for name in sorted(self.weights)
        ]
        if len(fused) > 1:
            detections = fuse_all(fused, [self.weights[name] for name in sorted(self.weights)], self.options)
        elif fused:
            detections = fused[0]
        else:
            detections = [Detections(run.image_id) for run in found[self.classifiers[0]][0]]
        image_ids = [each.image_id for each in detections]
        logits = mean_logits({name: found[name] for name in sorted(self.classifiers)}, image_ids)
        evidence = Evidence(detections, logits, bool(self.weights))
        return self.gate.apply(detections, self.no_finding.probabilities(evidence))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `read_recipe` is the inverse."""
        return {
            "weights": self.weights,
            "fusion": self.options.to_json(),
            "calibrations": {name: calibration.to_json() for name, calibration in self.calibrations.items()},
            "classifiers": list(self.classifiers),
            "no_finding": self.no_finding.to_json(),
            "gate": dataclasses.asdict(self.gate),
        }


def _fuse_checkpoints(runs: Sequence[Sequence[Detections]], options: FusionOptions) -> list[Detections]:
    """The detections of a member's checkpoints, one for each fold, as one."""
    return list(runs[0]) if len(runs) == 1 else fuse_all(runs, [1.0] * len(runs), options)


@dataclass(frozen=True)
class _RecipeFile:
    """A recipe as `to_json` writes it."""

    weights: dict[SafeName, Annotated[float, between(0, 1e6, above=True)]]
    fusion: FusionOptions
    calibrations: dict[SafeName, Calibration]
    classifiers: tuple[SafeName, ...]
    no_finding: NoFinding
    gate: Gate

    def __post_init__(self) -> None:
        if not set(self.weights) <= set(self.calibrations):
            raise ValueError("a calibration is missing; want one for each detector with a weight")
        if not self.weights and not self.classifiers:
            raise ValueError("neither weights nor classifiers; want a member")
        has_classifiers, has_boxes = bool(self.classifiers), bool(self.weights)
        needed = {"boxes": has_boxes, "classifiers": has_classifiers, "both": has_boxes and has_classifiers}
        if not needed[self.no_finding.source]:
            raise ValueError(f"no_finding.source is {self.no_finding.source}, of which there is no member")


def make_again(run: str) -> str:
    """How to get a whole `ensemble.json` in the folder of a run."""
    return f"to make the ensemble, run: {job_command('ensemble', '--run', run, '--data', 'DATA')}"


@dataclass(frozen=True)
class ScoresRow:
    """Scores as `ensemble.json` holds them; NaN where there is none."""

    map_40_findings: Score = math.nan
    map_40: Score = math.nan
    per_class: dict[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class IntervalRow:
    """An interval as `ensemble.json` holds it."""

    estimate: Difference = math.nan
    low: Difference = math.nan
    high: Difference = math.nan


@dataclass(frozen=True)
class GainRow:
    """What the ensemble gains over the best single model; without a verdict where that was not measured."""

    fused: Score = math.nan
    single: Score = math.nan
    interval: IntervalRow = IntervalRow()
    verdict: str = ""


@dataclass(frozen=True)
class EnsembleFile:
    """What other programs need of `ensemble.json`; a field that is left out is empty."""

    recipe: _RecipeFile | None = None
    single_scores: dict[str, Score] = field(default_factory=dict)
    test: dict[str, ScoresRow] = field(default_factory=dict)
    out_of_fold: ScoresRow = ScoresRow()
    gain: GainRow = GainRow()


def read_ensemble(run: str) -> EnsembleFile:
    """`ensemble.json` of a run; raises InputError when there is none, or when another version wrote it."""
    location = storage.join(run, FILE)
    if not storage.exists(location):
        raise InputError(f"{run}: no {FILE}; {make_again(run)}")
    return checked.read(location, EnsembleFile, schema=SCHEMA, again=make_again(run))


def read_recipe(run: str) -> Recipe:
    """The recipe in `ensemble.json` of a run; raises InputError when there is none that can be applied."""
    found = read_ensemble(run).recipe
    if found is None:
        raise checked.wrong(storage.join(run, FILE), "no field recipe", again=make_again(run))
    return Recipe(found.weights, found.fusion, found.calibrations, found.classifiers, found.no_finding, found.gate)
