"""From kept checkpoints to a submission."""

import _environment  # noqa: F401 # isort: skip

from typing import Annotated, Literal

from vbd import storage
from vbd.cli import Location, main
from vbd.cluster.connect import connect
from vbd.config import Device, Seed
from vbd.config.checked import between
from vbd.console.last_line import tell
from vbd.ensemble.summary import summary_of
from vbd.storage import shown
from vbd.storage.outputs import check_outputs


def ensemble(
    *,
    run: Location,
    data: Location,
    output: Location | None = None,
    part: Literal["test"] = "test",
    gate: Literal["auto", "append", "damp", "replace", "quota"] = "auto",
    trials: Annotated[int, between(0, 100_000)] = 0,
    seed: Seed = 0,
    replicates: Annotated[int, between(1, 100_000)] = 1_000,
    html: Location | None = None,
    device: Device = "auto",
) -> None:
    """Calibrate, select and fuse the kept checkpoints on out-of-fold detections, and write a checked submission.csv.

    For research; not for clinical use. docs/ensemble.md tells what is done, and how to read what is told.

    Args:
        run: Folder of a finished search, or of jobs/train.py.
        data: The prepared dataset it was trained on.
        output: The submission; by default submission.csv in the run folder.
        part: The part to predict.
        gate: What P(no finding) does to boxes: append leaves them, damp lowers their scores, replace and quota take those of the
            likeliest normal images away; auto is append, and damp where it gains on images that took no part.
        trials: Of a search for better weights, thresholds and rule of fusion after the greedy selection; minutes each hundred.
        seed: Of the parts of the images, the search and the replicates.
        replicates: Bootstrap replicates of every interval.
        html: Also write a page of figures and pictures to this file.
        device: Where the detectors run.
    """
    submission = output or storage.join(run, "submission.csv")
    check_outputs(
        {"--output": (submission, "submission"), "--html": (html, "page")},
        reads={"--data": data},
        beside={"--run": run},
    )
    from vbd.config import RunOptions
    from vbd.ensemble.build import build_ensemble
    from vbd.ensemble.fit import plan_of

    plan = plan_of(gate=gate, trials=trials, seed=seed, replicates=replicates)
    options = RunOptions(device=device)
    result = build_ensemble(run, data, output=submission, options=options, plan=plan, connect=connect)
    tell(submission=result.output)
    print(summary_of(result))
    if html is not None:
        from vbd.reports.ensemble.page import write_ensemble_page

        write_ensemble_page(result, html, replicates=replicates)
        print(f"report       {shown(html)}")


if __name__ == "__main__":
    main(ensemble)
