"""Configurations trained on the folds with Ray Train, on one or many workers."""

import _environment  # noqa: F401 # isort: skip

from typing import Annotated

import tyro

from vbd.cli import Location, main
from vbd.cluster.connect import connect
from vbd.config import Family, Input, Kept, LoaderWorkers
from vbd.storage.outputs import check_outputs


def train(
    *,
    output: Location,
    data: Location = "",
    run: Location = "",
    top: Kept = 1,
    families: tuple[Family, ...] = (),
    config: Location = "",
    second_stage: Location = "",
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    weights: Location = "",
    folds: str = "all",
    workers: str = "1",
    gpu: bool = False,
    input: Input = "loader",
    loader_workers: LoaderWorkers = 0,
    keep: Kept = 2,
    resume: bool = False,
) -> None:
    """Train configurations on the folds, on one or many workers; the same command goes on after a stop.

    They are the best of a search (--run), those of a file (--config), the second stage of an earlier training (--second-stage),
    or the default. docs/training.md tells more.

    Args:
        output: Folder of the checkpoints, one for each fold, and of the manifest that jobs/ensemble.py reads.
        data: The prepared dataset.
        run: Folder of a finished search; its leaderboard names the configurations.
        top: Configurations of each detector family of that search.
        families: Only these detector families of it.
        config: JSON file of configuration fields, or folder of a checkpoint whose configuration is trained anew.
        second_stage: Output of a finished training: each fold goes on from its best checkpoint, a tenth of the steps long.
        set: Replace a field, name=value, such as steps=5000 or subset=1,12; may be given again.
        weights: File of weights or checkpoint to start from; {fold} in it stands for the fold.
        folds: all, or fold numbers separated by commas.
        workers: Processes that share each batch: a number, or two such as 1-4 for as many as there is room for.
        gpu: Give each of them a GPU.
        input: Where batches are made: beside each worker, or by Ray Data on the CPUs of the cluster.
        loader_workers: Processes beside each worker that decode and augment.
        keep: How many of the newest checkpoints stay beside the best.
        resume: Go on with what the output folder holds; needs no other flag.
    """
    flags = {name: value for name, value in locals().items() if name not in ("output", "resume")}
    check_outputs(
        {"--output": (output, "folder")},
        reads={"--data": data, "--config": config, "--weights": weights},
        beside={"--run": run, "--second-stage": second_stage},
    )
    from vbd.config import RunOptions
    from vbd.search.kept.leaderboard import best_configs
    from vbd.training.folds.plan import check_sources, configs_from, make_plan, resume_plan
    from vbd.training.folds.run import train_plan
    from vbd.training.settings import parse_settings

    if resume:
        plan = resume_plan(output, flags, train.__kwdefaults__ or {})
    else:
        check_sources(data, run=run, config=config, second_stage=second_stage)
        settings = parse_settings(set, weights=weights)
        configs = best_configs(run, data, top=top, families=families) if run else {}
        if not run:
            configs, data = configs_from(config, second_stage, settings, data=data)
        options = RunOptions(device="cuda" if gpu else "cpu", loader_workers=loader_workers, input=input)
        plan = make_plan(
            configs, settings, output=output, data=data, folds=folds, workers=workers, options=options, keep=keep
        )
    train_plan(plan, output, connect=connect)


if __name__ == "__main__":
    main(train)
