"""A driver for a simulated cluster: prepares, searches and predicts, and tells on which nodes each of these ran."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vbd.cluster.connect import connect
from vbd.config import Candidate, PrepareConfig, RunOptions, SearchConfig, TrainConfig
from vbd.data.prepare import dataset as prepare
from vbd.data.prepare import shards as prepare_shards
from vbd.predict import request as predict
from vbd.predict import stages as predict_stages
from vbd.search import run
from vbd.search.cost import measure as calibrate
from vbd.search.kept.leaderboard import read_leaderboard
from vbd.search.tune import trial as tuning

# Before they are replaced below: a worker of Ray, which loads this file too, finds the originals.
_write_shard, _decode, _run_trial, _measure = (
    prepare_shards._write_shard,
    predict_stages._decode,
    tuning.run_trial,
    calibrate.measure,
)


def _note(what: str) -> None:
    """One line, appended at once: many workers write."""
    with open(os.environ["VBD_PLACES"], "a") as file:
        file.write(f"{what} {os.environ['VBD_NODE']}\n")


def write_shard(*args: Any, **more: Any) -> dict[str, int]:
    _note("prepare")
    return _write_shard(*args, **more)


def decode(*args: Any, **more: Any) -> dict[str, Any]:
    _note("decode")
    return _decode(*args, **more)


class Detect(predict_stages._Detect):
    def __init__(self, *args: Any):
        _note("detect")
        super().__init__(*args)


def trial(*args: Any, **more: Any) -> None:
    _note("trial")
    _run_trial(*args, **more)


def measure(*args: Any, **more: Any) -> Any:
    _note("measure")
    return _measure(*args, **more)


def main(raw: str, folder: str) -> None:
    """Writes the prepared dataset and the run into `folder`, and `what node` lines into the file VBD_PLACES."""
    # By its full name: Ray's workers load it from there.
    from tests import placed_work as mine

    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (prepare_shards, "_write_shard", mine.write_shard),
        (predict_stages, "_decode", mine.decode),
        (predict_stages, "_Detect", mine.Detect),
        (run, "run_trial", mine.trial),
        (calibrate, "measure", mine.measure),
    ]
    for module, name, replacement in replaced:
        setattr(module, name, replacement)
    connect()
    data = str(Path(folder) / "data")
    prepare.prepare(raw, data, PrepareConfig(image_size=64, num_folds=3, shard_size=16))
    config = TrainConfig(image_size=64, variant="nano", batch_size=4, steps=3, report_every=3, pretrained=False)
    search = SearchConfig(
        preset="placed",
        candidates=(Candidate(config, ranges={"learning_rate": (1e-4, 1e-3)}, trials=2),),
        searcher="random",
    )
    run.run_search(search, data=data, storage_root=folder, name="run", options=RunOptions())
    kept = read_leaderboard(str(Path(folder) / "run")).trials[0].checkpoint
    images = predict.images_of(predict.Request({}, data, folder, part="test"))[0]
    found = predict.predict([str(kept)], images, options=RunOptions())
    print("predicted", *(len(detections) for detections in found.by_checkpoint.values()))
    print("on the head", json.dumps(_actors_on_head()))


def _actors_on_head() -> list[str]:
    from ray.util.state import list_actors, list_nodes

    heads = {node.node_id for node in list_nodes() if node.is_head_node}
    return sorted({actor.class_name for actor in list_actors(limit=1000, detail=True) if actor.node_id in heads})


if __name__ == "__main__":
    main(*sys.argv[1:])
