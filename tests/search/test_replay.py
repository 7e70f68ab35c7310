"""Scores told again: from weights that were really trained, from detections where none were kept, and where they differ."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vbd import storage
from vbd.config import RunOptions, TrainConfig
from vbd.config.phases import with_phase
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError, StoreError
from vbd.records import Trial
from vbd.search.kept.keep import keep_best
from vbd.search.kept.leaderboard import Leaderboard, ranked, write_leaderboard
from vbd.search.kept.proof import prove, truths_of_fold
from vbd.search.kept.replay import check_device, replay_run
from vbd.search.kept.trial import TrialFolder, read_trials, trial_id_of
from vbd.training import replay as training_replay
from vbd.training.loop import train
from vbd.training.replay import detect_again, device_to_replay

# Of a detector that says something already after two steps: its score is near nought, but is not nought.
TINY = TrainConfig(
    detector="efficientdet",
    variant="lite0",
    image_size=128,
    batch_size=4,
    steps=4,
    report_every=2,
    warmup_steps=1,
    policy="E",
    strength=0.3,
)
PRUNED, CHILD = replace(TINY, learning_rate=2e-3), with_phase(TINY, 2, strength=0.5, rate=1.2)
YOLOX = replace(TINY, detector="yolox", variant="nano", image_size=64, precision="bf16", ema_decay=0.0)


def trained(run: str, config: TrainConfig, dataset: PreparedDataset, *, until: int) -> TrialFolder:
    """A trial as a search trains it; its checkpoints are its own when it is told that it has ended."""
    folder = TrialFolder(run, trial_id_of(config))
    start = folder.begin(config, dataset=dataset.fingerprint, number=0)
    train(
        config,
        dataset,
        options=RunOptions(device="cpu"),
        report=lambda metrics, checkpoint: folder.keep(metrics | {"device": "cpu"}, checkpoint) and None,  # type: ignore
        resume_from=start,
        until=until,
    )
    return folder


def publish(run: str, dataset: PreparedDataset) -> Leaderboard:
    """What a search writes at its end."""
    trials = [prove(trial, truths_of_fold(dataset)) for trial in read_trials(run)]
    board = Leaderboard("test", dataset.fingerprint, True, ranked(trials))
    write_leaderboard(run, board)
    keep_best(run, board, per_family=1)
    return board


@pytest.fixture(scope="module")
def finished(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: a parent that was stopped, its child, a trial without weights, one of another family and one that failed."""
    run, dataset = tmp_path_factory.mktemp("runs") / "run", open_dataset(prepared)
    storage.write_json(
        str(run / "run.json"), {"search": {"preset": "test"}, "dataset": dataset.fingerprint, "data": prepared}
    )
    parent = trained(str(run), TINY, dataset, until=2)
    trained(str(run), CHILD, dataset, until=4).finish()
    parent.stop("its child took its place")
    pruned = trained(str(run), PRUNED, dataset, until=4)
    pruned.finish()
    pruned.prune()
    trained(str(run), YOLOX, dataset, until=4).finish()
    failed = TrialFolder(str(run), trial_id_of(replace(TINY, seed=9)))
    failed.begin(replace(TINY, seed=9), dataset=dataset.fingerprint, number=0)
    failed.fail("the loss is nan")
    publish(str(run), dataset)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, to tamper with."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def told(run: Path, trial: Any, **more: Any) -> tuple[bool, dict[str, list[str]], str]:
    """Whether all agree, the cells of each trial's line by id, and the summary."""
    which = trial_id_of(trial) if isinstance(trial, TrainConfig) else trial
    lines: list[str] = []
    agree = replay_run(str(run), trial=which, say=lines.append, **more)
    _, head, *rows, summary = lines
    assert head.split() == ["trial", "family", "told", "recomputed", "difference", "from", "verdict"]
    return agree, {row.split()[0]: re.split(r"\s{2,}", row) for row in rows}, summary


def trial_of(run: Path, config: TrainConfig) -> Trial:
    trial = TrialFolder(str(run), trial_id_of(config)).read()
    assert trial is not None
    return trial


def only(rows: dict[str, list[str]]) -> list[str]:
    (row,) = rows.values()
    return row


# ---------------------------------------------------------------------------------------------------- what is in order


def test_every_score_is_told_again_from_weights_or_from_detections(finished: Path) -> None:
    agree, rows, summary = told(finished, "all")
    assert agree
    assert set(rows) == {trial_id_of(config) for config in (TINY, CHILD, PRUNED, YOLOX)}
    assert trial_of(finished, PRUNED).score > 1e-4
    for config, step in ((TINY, 2), (CHILD, 4)):
        trial = trial_of(finished, config)
        assert trial.score > 1e-5
        assert rows[trial.trial_id] == [
            *(trial.trial_id, "efficientdet", f"{trial.score:.8f}", f"{trial.score:.8f}", "0"),
            *(f"checkpoint step-{step:08d} on cpu", "agrees; detections bit for bit as kept"),
        ]
    assert rows[trial_id_of(PRUNED)][-2:] == ["detections, weights not kept", "agrees"]
    assert summary == (
        "4 of 4 agree to 1e-06; 3 by their checkpoints, 1 by their kept detections alone, as their weights were not kept"
    )


def test_the_best_are_told_again_from_the_weights_that_the_ensemble_reads(run: Path) -> None:
    shutil.rmtree(trial_of(run, YOLOX).checkpoint)
    agree, rows, summary = told(run, "best")
    assert agree
    assert {(row[1], row[5]) for row in rows.values()} == {
        ("efficientdet", "checkpoint best/efficientdet-1 on cpu"),
        ("yolox", "checkpoint best/yolox-1 on cpu"),
    }
    assert summary == "2 of 2 agree to 1e-06; 2 by their checkpoints"


def test_a_search_without_a_leaderboard_is_told_by_its_trials(run: Path) -> None:
    (run / "leaderboard.json").unlink()
    agree, rows, _ = told(run, CHILD)
    assert agree
    assert list(rows) == [trial_id_of(CHILD)]


def test_weights_that_went_since_the_leaderboard_was_written_are_no_fault(run: Path) -> None:
    TrialFolder(str(run), trial_id_of(CHILD)).prune()
    agree, rows, _ = told(run, CHILD)
    assert agree
    assert only(rows)[5] == "detections, weights not kept"


def test_the_share_of_each_worker_makes_the_same_detections(finished: Path, prepared: str) -> None:
    trial, device = trial_of(finished, CHILD), torch.device("cpu")
    threads = torch.get_num_threads()
    one, three = (
        detect_again(trial.checkpoint, open_dataset(prepared), device=device, workers=workers) for workers in (1, 3)
    )
    assert [found.image_id for found in one] == [found.image_id for found in three]
    assert len({found.image_id for found in three}) == 20
    assert torch.get_num_threads() == threads


def test_where_a_trial_was_trained_decides_where_it_is_told_again() -> None:
    assert device_to_replay("auto", trained_on="cpu").type == "cpu"
    assert device_to_replay("cpu", trained_on="cuda:0").type == "cpu"
    if not torch.cuda.is_available():
        assert device_to_replay("auto", trained_on="cuda:1").type == "cpu"
        with pytest.raises(InputError, match="device cuda: this process sees no GPU"):
            device_to_replay("cuda", trained_on="cpu")


# ------------------------------------------------------------------------------------------------------ what is not


def forge(checkpoint: str) -> None:
    """Other weights of boxes in a checkpoint, with size and SHA-256 of the forged file beside them."""
    folder = Path(checkpoint)
    weights = torch.load(folder / "model.pt", weights_only=True)
    changed = {name: -value for name, value in weights.items() if value.is_floating_point() and "box_net" in name}
    assert changed
    torch.save(weights | changed, folder / "model.pt")
    data = (folder / "model.pt").read_bytes()
    content = json.loads((folder / "config.json").read_text())
    content["files"]["model.pt"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "config.json").write_text(json.dumps(content))


def test_forged_weights_have_another_score(run: Path) -> None:
    forge(trial_of(run, CHILD).checkpoint)
    agree, rows, summary = told(run, CHILD)
    assert not agree
    _, _, score, recomputed, difference, _, verdict = only(rows)
    assert float(difference) == pytest.approx(float(recomputed) - float(score), rel=0.05)
    assert abs(float(difference)) > 1e-6
    assert re.fullmatch(
        "differs; its weights, the dataset's images, .* are not those of the training; detections other than kept in "
        r"\d+ of 20 images",
        verdict,
    )
    assert summary == "0 of 1 agree to 1e-06; 1 by their checkpoints"


def test_another_device_is_told_as_the_likely_reason(run: Path) -> None:
    trial = trial_of(run, CHILD)
    forge(trial.checkpoint)
    content = storage.read_object(str(run / "leaderboard.json"))
    for one in content["trials"]:
        one["device"] = "cuda:1"
    storage.write_json(str(run / "leaderboard.json"), content)
    agree, rows, _ = told(run, CHILD, device="cpu")
    assert not agree
    assert "likely as it was trained on cuda:1 and recomputed on cpu: devices round differently" in only(rows)[-1]


def test_a_file_that_is_not_the_one_that_was_written_is_refused(run: Path) -> None:
    model = Path(trial_of(run, CHILD).checkpoint) / "model.pt"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    agree, rows, _ = told(run, "all")
    assert not agree
    assert rows[trial_id_of(CHILD)][3:5] == ["-", "-"]
    assert rows[trial_id_of(CHILD)][-1].startswith("refused: ")
    assert "another SHA-256" in rows[trial_id_of(CHILD)][-1]
    assert rows[trial_id_of(TINY)][-1].startswith("agrees")


@pytest.mark.parametrize("config", [CHILD, PRUNED])
def test_a_score_that_the_leaderboard_makes_up_is_told_beside_the_real_one(run: Path, config: TrainConfig) -> None:
    real = trial_of(run, config).score
    content = storage.read_object(str(run / "leaderboard.json"))
    for one in content["trials"]:
        one["score"] = 0.5
    storage.write_json(str(run / "leaderboard.json"), content)
    agree, rows, _ = told(run, config)
    assert not agree
    assert only(rows)[2:5] == ["0.50000000", f"{real:.8f}", f"{real - 0.5:+.1e}"]
    assert only(rows)[-1].startswith("refused: its ")


def test_kept_detections_of_others_are_refused(run: Path) -> None:
    detections = trial_of(run, PRUNED).detections
    shutil.copy(trial_of(run, CHILD).detections, detections)
    agree, rows, _ = told(run, PRUNED)
    assert not agree
    assert only(rows)[3] == f"{trial_of(run, CHILD).score:.8f}"
    assert only(rows)[-1].startswith("refused: its detections score ")
    Path(detections).unlink()
    assert "no such file" in only(told(run, PRUNED)[1])[-1]


def test_a_checkpoint_of_another_dataset_is_not_computed(finished: Path, prepared: str) -> None:
    other = dataclasses.replace(open_dataset(prepared), fingerprint="0" * 16)
    with pytest.raises(InputError, match=f"trained on dataset {open_dataset(prepared).fingerprint}, this is 0000"):
        detect_again(trial_of(finished, CHILD).checkpoint, other, device=torch.device("cpu"))


def test_a_store_out_of_reach_is_no_verdict(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_reach(*_: Any, **__: Any) -> Any:
        raise StoreError("s3://bucket: out of reach")

    monkeypatch.setattr(training_replay, "load_detector", out_of_reach)
    with pytest.raises(StoreError):
        told(finished, CHILD)


# ----------------------------------------------------------------------------------------------------- what was given


def test_a_trial_that_is_not_there_is_told_with_those_near(finished: Path) -> None:
    real = trial_id_of(CHILD)
    for given in (real[:4], real[:-1] + ("0" if real[-1] != "0" else "1")):
        with pytest.raises(
            InputError, match=f"--trial {given}: no trial of .*; did you mean .*{real}.* All ids stand in"
        ):
            told(finished, given)
    with pytest.raises(InputError, match=r"--trial xyz: no trial .*; give best, all or an id; .*/run/leaderboard.txt$"):
        told(finished, "xyz")
    with pytest.raises(InputError, match=r"has no score to tell again \(failed: the loss is nan\)"):
        told(finished, replace(TINY, seed=9))


def test_another_dataset_is_refused(run: Path, prepared: str, tmp_path: Path) -> None:
    def given(change: Callable[[dict[str, Any]], Any]) -> str:
        other = tmp_path / "other"
        content = storage.read_object(f"{prepared}/dataset.json")
        storage.write_json(str(other / "dataset.json"), content | change(content))
        return str(other)

    data = given(lambda content: {"fingerprint": "0" * 16})
    with pytest.raises(InputError, match=f"a search on dataset .*, but {data} is 0000.*; give --data the dataset of"):
        told(run, "all", data=data)
    storage.write_json(str(run / "run.json"), {"search": {"preset": "test"}, "dataset": "f", "data": "/nowhere"})
    with pytest.raises(InputError, match=r"its dataset is not at /nowhere any more; give --data"):
        told(run, "all")
    assert told(run, PRUNED, data=prepared)[0]


def test_a_folder_that_is_no_search_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no search \(no run.json\)"):
        told(tmp_path / "nothing", "all")
    shutil.rmtree(run / "best")
    with pytest.raises(InputError, match=r"best: no manifest.json"):
        told(run, "best")
    (run / "leaderboard.json").unlink()
    shutil.rmtree(run / "trials")
    with pytest.raises(InputError, match="none of its 0 trials has a score"):
        told(run, "all")


def test_weights_of_fp16_need_a_gpu(finished: Path) -> None:
    trial = replace(trial_of(finished, CHILD), config=replace(CHILD, precision="fp16"))
    with pytest.raises(InputError, match="precision fp16 needs a GPU"):
        check_device(trial, "cpu")
    check_device(replace(trial, checkpoint=""), "cpu")
