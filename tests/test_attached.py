"""All jobs on a wide terminal, attached to a Ray that was started in another directory, with relative paths."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import Nodes
from tests.terminal import Terminal, all_in_one
from vbd.cluster.own_ray import _LONGEST_SOCKET

pytestmark = pytest.mark.slow

_TINY = ("image_size=64", "variant=nano", "batch_size=4", "report_every=2", "warmup_steps=1", "pretrained=false")
_SET = " ".join(f"--set={one}" for one in _TINY)
COMMANDS = [
    "sample --output films --images 24 --test-images 4 --size 96 --format png --abnormal-share 0.8",
    "prepare --source films --output data --image-size 64 --folds 2",
    "eda --data data --output pages/eda.html --picture pages/one.png",
    "tune search --data data --storage runs --name first --device cpu --families yolox --trials 1 --steps 4 " + _SET,
    "train --config config.json --data data --output folds --folds 0 --set steps=4",
    "predict --images films/test --checkpoint runs/first/best/yolox-1 --output found --coco found/coco.json --overlay drawn",
    "ensemble --run runs/first --data data --output sent/submission.csv --html pages/ensemble.html --replicates 20",
    "evaluate --predictions sent/submission.csv --data data --json scores.json --html pages/scores.html --replicates 0",
    "evaluate --run runs/first",
    "report --run runs/first --data data --output pages/report.html",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, list[str]]]:
    """The folder in which all jobs ran, what they printed, and Ray's sockets; the head stands in the project's folder."""
    folder = tmp_path_factory.mktemp("attached")
    config = {"steps": 4, "weights": "runs/first/best/yolox-1", "pretrained": False}
    values = dict(one.split("=") for one in _TINY) | config
    plain = {name: int(v) if isinstance(v, str) and v.isdigit() else v for name, v in values.items()}
    (folder / "config.json").write_text(json.dumps(plain))
    with Nodes(cpus=2, object_store_memory=200_000_000) as nodes:
        with Terminal(all_in_one(COMMANDS), cwd=folder, env=nodes.environment, columns=200, rows=50) as terminal:
            shown = terminal.finish(timeout=900)
        sockets = [path.name for path in Path(nodes.folder, "ray", "session_latest", "sockets").iterdir()]
        yield folder, shown.plain, sockets


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_a_job_finds_relative_paths_wherever_ray_was_started(command: str, ran: tuple[Path, str, list[str]]) -> None:
    _, output, _ = ran
    assert f"exit 0: {command}\n" in output, output


def test_everything_lies_below_the_folder_of_the_user(ran: tuple[Path, str, list[str]]) -> None:
    folder, output, _ = ran
    wanted = [
        *("films/train.csv", "data/dataset.json", "pages/eda.html", "pages/one.png", "runs/first/submission.csv"),
        *("folds/manifest.json", "found/detections.parquet", "found/coco.json", "drawn"),
        *("sent/submission.csv", "pages/ensemble.html", "scores.json", "pages/scores.html", "pages/report.html"),
    ]
    assert [name for name in wanted if not (folder / name).exists()] == []
    # What is printed is what the user typed; what a program reads leaves nothing open.
    assert "submission   sent/submission.csv (checked)\n" in output
    assert "films: 24 train" in output
    assert f'"output": "{folder}/found"' in output
    configs = json.loads((folder / "folds" / "train.json").read_text())["configs"]
    assert configs["yolox-1"]["weights"] == f"{folder}/runs/first/best/yolox-1"


def test_the_live_table_says_where_a_trial_runs_on_a_wide_terminal(ran: tuple[Path, str, list[str]]) -> None:
    _, output, _ = ran
    assert re.search(r"running +step +loss +score +images/s +where", output)


def test_no_socket_of_ray_is_longer_than_was_counted(ran: tuple[Path, str, list[str]]) -> None:
    *_, sockets = ran
    assert max(map(len, sockets)) == len(Path(_LONGEST_SOCKET).name)


def test_a_cluster_without_a_token_is_reported_once(ran: tuple[Path, str, list[str]]) -> None:
    _, output, _ = ran
    assert len([line for line in output.splitlines() if line.startswith("warning: the cluster at ")]) == 1
