"""The competition's metric for detections or a submission."""

from vbd.cli import main


def evaluate(
    *, predictions: str, data: str, part: str | None = None, replicates: int = 1_000, json: str | None = None
) -> int:
    """Score predictions against a prepared dataset: AP at IoU > 0.4 per class, with bootstrap intervals.

    A submission.csv is checked as well, line by line; a defect makes the exit code 1.

    Args:
        predictions: detections.parquet of jobs/predict.py, a submission.csv, or a COCO results JSON.
        data: The prepared dataset that holds the truth.
        part: test, train or a fold number; by default the part that the predictions' images are in.
        replicates: Bootstrap replicates; 0 leaves the intervals out.
        json: Also write the scores to this file.
    """
    from vbd.reports.scores import parse_part, score_predictions

    scored = score_predictions(predictions, data, part=parse_part(part), replicates=replicates, output_json=json)
    print(scored.text)
    return 1 if scored.defects else 0


if __name__ == "__main__":
    main(evaluate)
