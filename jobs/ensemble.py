"""From kept checkpoints to a submission."""

from typing import Literal

from vbd.cli import connect, main


def ensemble(
    *,
    run: str,
    data: str,
    output: str | None = None,
    split: Literal["test"] = "test",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Calibrate, select and fuse the kept checkpoints on out-of-fold detections, and write a checked submission.csv.

    Args:
        run: Folder of a finished search, or of jobs/train.py.
        data: The prepared dataset it was trained on.
        output: The submission; by default submission.csv in the run folder.
        split: The part to predict.
        device: Where the detectors run.
    """
    from vbd.config import RunOptions
    from vbd.ensemble.build import build_ensemble

    connect()
    result = build_ensemble(run, data, output=output, part=split, options=RunOptions(device=device))
    print(result.summary)


if __name__ == "__main__":
    main(ensemble)
