"""What a training came to: a line for each fold, and the score over all of them with its interval."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vbd.console.words import table_lines
from vbd.data.prepared import PreparedDataset, read_truths
from vbd.evaluation.intervals import bootstrap
from vbd.evaluation.score import interval_of, score_name
from vbd.training.checkpoint import family_of
from vbd.training.members import Member


@dataclass(frozen=True)
class Outcome:
    """One fold of a member: its best checkpoint, or the reason why there is none."""

    member: str
    fold: int
    folder: str = ""
    score: float = 0.0
    step: int = 0
    reason: str = ""


def member_of(name: str, outcomes: Sequence[Outcome]) -> Member:
    """The member of the ensemble that some folds make; its score is their mean."""
    return Member(name, name, statistics.mean(o.score for o in outcomes), tuple(o.folder for o in outcomes))


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """A table for people, one line for each fold."""
    rows = [("member", "fold", "score", "step", "checkpoint")]
    for o in outcomes:
        cells = ("-", "-", f"failed: {o.reason}") if o.reason else (f"{o.score:.4f}", str(o.step), o.folder)
        rows.append((o.member, str(o.fold), *cells))
    return "\n".join(table_lines(rows, numbers=False))


def summary(member: Member, outcomes: Sequence[Outcome], dataset: PreparedDataset) -> str:
    """The mean over folds; when these are all folds, also the score of all out-of-fold detections together.

    The latter counts every training image once, by the model that did not see it; its interval is over images, not over
    other trainings.
    """
    label = " (synthetic data)" if dataset.synthetic else ""
    scores = [o.score for o in outcomes]
    spread = f", sd {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    family = family_of(member)
    name = score_name([family])
    lines = [f"{member.name}: mean {name} {member.score:.4f}{spread} over {len(scores)} fold(s){label}"]
    if {o.fold for o in outcomes} == set(range(dataset.options.num_folds)):
        found = member.out_of_fold()
        interval = interval_of(family, bootstrap(found, read_truths(dataset, "train"), seed=0))
        lines.append(
            f"{member.name}: out-of-fold {name} {interval.estimate:.4f}, 95 % interval {interval.low:.4f} to "
            f"{interval.high:.4f} over {len(found)} images{label}"
        )
    return "\n".join(lines)
