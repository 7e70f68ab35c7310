"""The whole recipe of an ensemble, from the members' raw detections to what is submitted, as it lives in `ensemble.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbd import storage
from vbd.commands import job_command
from vbd.ensemble.calibrate import Calibration, calibration_from_json
from vbd.ensemble.fusion import FusionOptions, fuse_all, options_from_json
from vbd.ensemble.gates import Gate, gate_from_json
from vbd.ensemble.no_finding import Evidence, NoFinding, mean_logits, no_finding_from_json
from vbd.errors import InputError
from vbd.records import Detections

SCHEMA = 2
FILE = "ensemble.json"


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
        """Plain numbers; `recipe_from_json` is the inverse."""
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


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """A Recipe from what `to_json` gave, through JSON."""
    return Recipe(
        weights=dict(values["weights"]),
        options=options_from_json(values["fusion"]),
        calibrations={name: calibration_from_json(each) for name, each in values["calibrations"].items()},
        classifiers=tuple(values["classifiers"]),
        no_finding=no_finding_from_json(values["no_finding"]),
        gate=gate_from_json(values["gate"]),
    )


def make_again(run: str) -> str:
    """How to get a whole `ensemble.json` in the folder of a run."""
    return f"to make the ensemble, run: {job_command('ensemble', '--run', run, '--data', 'DATA')}"


def read_ensemble(run: str) -> dict[str, Any]:
    """`ensemble.json` of a run; raises InputError when there is none, or when another version wrote it."""
    location = storage.join(run, FILE)
    if not storage.exists(location):
        raise InputError(f"{run}: no {FILE}; {make_again(run)}")
    content = storage.read_object(location)
    if content.get("schema") != SCHEMA:
        raise InputError(f"{location}: schema {content.get('schema')!r}, want {SCHEMA}; {make_again(run)}")
    return content


def read_recipe(run: str) -> Recipe:
    """The recipe in `ensemble.json` of a run; raises InputError when there is none that can be applied."""
    content = read_ensemble(run)
    try:
        return recipe_from_json(content["recipe"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        location = storage.join(run, FILE)
        raise InputError(f"{location}: field {error} is missing or wrong; {make_again(run)}") from None
