"""What building an ensemble gives."""

from dataclasses import dataclass

from vbd.config import Family, finds_boxes
from vbd.data.prepared import PreparedDataset
from vbd.ensemble.choose.diversity import Diversity
from vbd.ensemble.fit import Fitted
from vbd.evaluation.average_precision import Scores
from vbd.records import Detections, Truth

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class EnsembleResult:
    """Where the submission is, how it was made, and what each member is worth."""

    output: str
    dataset: PreparedDataset
    families: dict[str, Family]  # of each member
    found: dict[str, list[Detections]]  # of each member, raw, on the images that none was trained on
    truths: list[Truth]  # of these images
    fitted: Fitted
    singles: dict[str, Scores]  # of each member on these images
    out_of_fold: Scores  # of the ensemble on them, each told by a recipe made without it
    diversity: Diversity  # of the detectors
    test: dict[str, Scores]  # of every member and the ensemble; empty when the truth of the test part is not known
    detections: list[Detections]  # what was submitted

    @property
    def detectors(self) -> list[str]:
        """The members that find boxes."""
        return [name for name, family in self.families.items() if finds_boxes(family)]

    @property
    def classifiers(self) -> list[str]:
        """The members that tell normal images."""
        return [name for name, family in self.families.items() if not finds_boxes(family)]
