"""Detections, a submission or the members of an ensemble against the truth: the competition's metric and COCO's."""

import _environment  # noqa: F401 # isort: skip

from collections.abc import Mapping
from typing import Annotated

from vbd.cli import Location, main
from vbd.config import Device
from vbd.config.checked import Share, between
from vbd.errors import InputError
from vbd.storage.outputs import check_outputs


def evaluate(
    *,
    predictions: Location | None = None,
    data: Location | None = None,
    part: str | None = None,
    against: Location | None = None,
    replicates: Annotated[int, between(0, 100_000)] = 1_000,
    score_threshold: Share | None = None,
    json: Location | None = None,
    html: Location | None = None,
    check: Location | None = None,
    run: Location | None = None,
    trial: str = "best",
    device: Device = "auto",
) -> int:
    """Score predictions against a prepared dataset: AP at IoU > 0.4 with bootstrap intervals, COCO's AP, FROC, readers.

    A submission.csv is checked as well, line by line; a defect makes the exit code 1. With --check instead of --predictions
    it is examined for all that costs points, and each kind of defect told with its mend and its loss. With --run the scores of
    a search are computed again, from its checkpoints; one that is not what the leaderboard tells makes the exit code 1.

    Args:
        predictions: detections.parquet of jobs/predict.py or its folder, a checkpoint, a folder of several with their
            manifest.json (of jobs/train.py, or best/ of a search), a submission.csv, or a COCO results JSON.
        data: The prepared dataset that holds the truth; with --run by default the one of the search.
        part: test, train or a fold number; by default the part that the predictions' images are in.
        against: Other predictions, of any of these kinds: tells whether the first are better on the same images.
        replicates: Bootstrap replicates; 0 leaves the intervals out.
        score_threshold: Score from which a box counts in the confusion matrix and is drawn; by default where there is
            one false box per image.
        json: Also write all numbers to this file.
        html: Also write a page of figures, and the worst misses drawn on their images, to this file.
        check: A submission.csv to examine; boxes in pixels of resized images, a class 14 of the wrong sense and the like too.
        run: The folder of a search (jobs/tune.py) whose scores are computed again.
        trial: Which of its trials: an id of leaderboard.txt, best (the best of each family) or all that have a score.
        device: Where they are computed again; auto is where they were trained, if that is here.
    """
    flags: dict[str, tuple[object, tuple[str, ...]]] = {
        "--part": (part, ("--predictions", "--check")),
        "--json": (json, ("--predictions", "--check")),
        "--against": (against, ("--predictions",)),
        "--score-threshold": (score_threshold, ("--predictions",)),
        "--html": (html, ("--predictions",)),
        "--replicates": (replicates != 1_000, ("--predictions",)),
        "--trial": (trial != "best", ("--run",)),
        "--device": (device != "auto", ("--run",)),
    }
    _check_given({"--predictions": predictions, "--run": run, "--check": check}, flags)
    check_outputs(
        {"--json": (json, "examination" if check else "scores"), "--html": (html, "page")},
        reads={"--data": data},
        beside={"--predictions": predictions, "--against": against, "--check": check},
    )
    if run is not None:
        from vbd.search.kept.replay import replay_run

        return 0 if replay_run(run, trial=trial, data=data, device=device) else 1
    if data is None:
        raise InputError("--data is missing: give the prepared dataset that the predictions are for")
    from vbd.data.parts import parse_part

    if check is not None:
        from vbd.submission.examine import examine

        examined = examine(check, data, part=parse_part(part), output_json=json)
        print(examined.text)
        return 1 if examined.findings else 0
    assert predictions is not None
    from vbd.reports.scores.score import score_predictions

    scored = score_predictions(
        predictions,
        data,
        part=parse_part(part),
        against=against,
        replicates=replicates,
        score_threshold=score_threshold,
        output_json=json,
        output_html=html,
    )
    print(scored.text)
    return 1 if scored.defects else 0


def _check_given(given: Mapping[str, object], flags: Mapping[str, tuple[object, tuple[str, ...]]]) -> None:
    named = [flag for flag, value in given.items() if value is not None]
    if len(named) != 1:
        told = f"both are given of {' and '.join(named[:2])}" if named else f"neither is given of {' and '.join(given)}"
        raise InputError(f"{told}; give the predictions to score, a search's folder, or a submission to check")
    for flag, (value, owners) in flags.items():
        if value is not None and value is not False and named[0] not in owners:
            raise InputError(f"{flag} belongs to {' and '.join(owners)}; leave it out")


if __name__ == "__main__":
    main(evaluate)
