"""Detections, a submission or the members of an ensemble against the truth: the competition's metric and COCO's."""

from vbd.cli import main


def evaluate(
    *,
    predictions: str,
    data: str,
    part: str | None = None,
    against: str | None = None,
    replicates: int = 1_000,
    score_threshold: float | None = None,
    json: str | None = None,
    html: str | None = None,
) -> int:
    """Score predictions against a prepared dataset: AP at IoU > 0.4 with bootstrap intervals, COCO's AP, FROC, readers.

    A submission.csv is checked as well, line by line; a defect makes the exit code 1.

    Args:
        predictions: detections.parquet of jobs/predict.py or its folder, a checkpoint, a folder of several with their
            manifest.json (of jobs/train.py, or best/ of a search), a submission.csv, or a COCO results JSON.
        data: The prepared dataset that holds the truth.
        part: test, train or a fold number; by default the part that the predictions' images are in.
        against: Other predictions, of any of these kinds: tells whether the first are better on the same images.
        replicates: Bootstrap replicates; 0 leaves the intervals out.
        score_threshold: Score from which a box counts in the confusion matrix and is drawn; by default where there is
            one false box per image.
        json: Also write all numbers to this file.
        html: Also write a page of figures, and the worst misses drawn on their images, to this file.
    """
    from vbd.reports.scores import parse_part, score_predictions

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


if __name__ == "__main__":
    main(evaluate)
