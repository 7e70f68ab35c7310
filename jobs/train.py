"""Chosen configurations of a search, trained on the folds with Ray Train."""

from typing import Literal

from vbd.cli import connect, main


def train(
    *,
    run: str,
    data: str,
    output: str,
    top: int = 1,
    families: tuple[Literal["faster_rcnn", "yolox", "efficientdet"], ...] = (),
    folds: str = "all",
    steps: int | None = None,
    workers: int = 1,
    gpu: bool = False,
    loader_workers: int = 0,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
) -> None:
    """Train the best configurations of each detector family on the folds, on one or many workers. Run again to resume.

    Args:
        run: Folder of a finished search; its leaderboard names the configurations.
        data: The prepared dataset of that search.
        output: Folder of the checkpoints, one for each fold, and of the manifest that jobs/ensemble.py reads.
        top: Configurations of each detector family.
        families: Only these detector families.
        folds: all, or fold numbers separated by commas.
        steps: Optimiser steps, instead of the trial's.
        workers: Processes that share each batch.
        gpu: Give each of them a GPU.
        loader_workers: Processes beside each of them that decode and augment.
        precision: Arithmetic of the forward pass, instead of the trial's.
    """
    from vbd.config import RunOptions
    from vbd.search.leaderboard import best_configs
    from vbd.training.run import parse_folds, train_folds

    configs = best_configs(run, data, top=top, families=families, steps=steps, precision=precision)
    options = RunOptions(device="cuda" if gpu else "cpu", loader_workers=loader_workers)
    connect()
    numbers = parse_folds(folds, data)
    train_folds(configs, data, folds=numbers, output=output, workers=workers, use_gpu=gpu, options=options)


if __name__ == "__main__":
    main(train)
