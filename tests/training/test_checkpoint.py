import dataclasses
import hashlib
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import vbd
from tests.training.runs import CPU, Reports, config_of
from vbd import storage
from vbd.config import config_hash
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES
from vbd.models import detector_of
from vbd.predict.models import open_checkpoint
from vbd.training import checkpoint
from vbd.training.checkpoint import load_detector, read_info, read_part, whole_checkpoints, write_checkpoint
from vbd.training.loop import train

CONFIG = config_of("yolox", steps=2, report_every=1)


def _write(folder: Path, prepared: str, *, step: int = 1, **fields: Any) -> dict[str, Any]:
    """A checkpoint with random weights; returns what its config.json says."""
    fields = {"weights": detector_of(CONFIG, with_first_weights=False).state_dict(), "metrics": {}} | fields
    state = {"step": step, "detector": fields["weights"]}
    write_checkpoint(folder, config=CONFIG, dataset=open_dataset(prepared), state=state, step=step, **fields)
    return storage.read_object(str(folder / "config.json"))


def test_a_checkpoint_tells_the_truth_about_itself(prepared: str, tmp_path: Path) -> None:
    dataset = open_dataset(prepared)
    told = _write(tmp_path / "c", prepared, step=7, metrics={"map_40_findings": 0.25}, micro_batch=3)
    for name in ("model.pt", "state.pt"):
        data = (tmp_path / "c" / name).read_bytes()
        assert told["files"][name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert set(told["files"]) | {"config.json"} == {path.name for path in (tmp_path / "c").iterdir()}
    assert told["versions"] == {
        "vbd": vbd.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
        "effdet": version("effdet"),
        "yolox": version("pixeltable-yolox"),
    }
    assert told["classes"] == list(CLASS_NAMES)
    assert told["synthetic"] is True

    info = read_info(str(tmp_path / "c"))
    assert info.config == CONFIG
    assert info.config_hash == config_hash(CONFIG)
    assert info.dataset == dataset.fingerprint
    assert (info.step, info.metrics, info.micro_batch) == (7, {"map_40_findings": 0.25}, 3)
    assert (info.resize, info.channels, info.image_format, info.prepared_size) == ("stretch", "grey", "png", 128)
    assert info.first_weights is None  # they were random


def test_a_checkpoint_tells_what_it_started_from_also_after_a_resume(prepared: str, tmp_path: Path) -> None:
    start = tmp_path / "start.pt"
    weights = detector_of(CONFIG, with_first_weights=False).state_dict()
    tensors = {name for name, tensor in weights.items() if tensor.ndim}
    missing = next(name for name in weights if name.endswith("weight"))
    torch.save({name: tensor for name, tensor in weights.items() if name != missing} | {"odd": torch.ones(3)}, start)
    config, dataset = dataclasses.replace(CONFIG, weights=str(start)), open_dataset(prepared)
    train(config, dataset, options=CPU, report=Reports(tmp_path))
    start.unlink()
    train(config, dataset, options=CPU, report=Reports(tmp_path / "on"), resume_from=str(tmp_path / "1"))
    told = {"source": str(start), "loaded": len(tensors) - 1, "new": 1, "unused": 1}
    for folder in (tmp_path / "1", tmp_path / "2", tmp_path / "on" / "2"):
        assert read_info(str(folder)).first_weights == told


@pytest.mark.parametrize("place", [0, 1 / 2, -1], ids=["first byte", "middle", "last byte"])
@pytest.mark.parametrize("name", ["model.pt", "state.pt"])
def test_a_byte_that_has_changed_is_noticed(name: str, place: float, prepared: str, tmp_path: Path) -> None:
    _write(tmp_path / "c", prepared)
    file, folder = tmp_path / "c" / name, str(tmp_path / "c")
    assert read_part(folder, name, read_info(folder))
    data = bytearray(file.read_bytes())
    data[int(place * len(data)) if place > 0 else int(place)] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: not the file that was written beside its config\.json.*SHA-256"):
        read_part(folder, name, read_info(folder))


def test_a_run_does_not_go_on_from_a_checkpoint_with_another_byte(prepared: str, tmp_path: Path) -> None:
    _write(tmp_path / "c", prepared)
    state = bytearray((tmp_path / "c" / "state.pt").read_bytes())
    state[len(state) // 3] ^= 128
    (tmp_path / "c" / "state.pt").write_bytes(state)
    with pytest.raises(InputError, match=r"state\.pt: not the file that was written"):
        train(CONFIG, open_dataset(prepared), options=CPU, report=lambda *_: None, resume_from=str(tmp_path / "c"))


def test_a_state_that_is_not_that_of_a_run_is_refused_in_one_line(prepared: str, tmp_path: Path) -> None:
    _write(tmp_path / "c", prepared)  # without an optimiser
    with pytest.raises(InputError, match=r"state\.pt: not the weights of yolox nano \('optimizer'\)"):
        train(CONFIG, open_dataset(prepared), options=CPU, report=lambda *_: None, resume_from=str(tmp_path / "c"))


def test_a_checkpoint_takes_the_place_of_an_older_one(prepared: str, tmp_path: Path) -> None:
    _write(tmp_path / "c", prepared, step=1)
    (tmp_path / "c" / "out_of_fold.parquet").write_bytes(b"of step 1")
    _write(tmp_path / "c", prepared, step=2)
    assert read_info(str(tmp_path / "c")).step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert not (tmp_path / "c" / "out_of_fold.parquet").exists()


def test_a_checkpoint_of_an_older_version_is_still_read(prepared: str, tmp_path: Path) -> None:
    told = _write(tmp_path / "c", prepared, micro_batch=3)
    newer = {
        "channels",
        "image_format",
        "prepared_size",
        "first_weights",
        "micro_batch",
        "files",
        "versions",
        "synthetic",
    }
    storage.write_json(str(tmp_path / "c" / "config.json"), {k: v for k, v in told.items() if k not in newer})
    detector, info = load_detector(str(tmp_path / "c"))
    assert not detector.training
    assert (info.channels, info.image_format, info.prepared_size, info.micro_batch) == ("grey", "png", 0, 0)
    assert (info.first_weights, info.files) == (None, {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 99}, "schema 99, want 1"),
        ({"classes": ["lung"]}, r"classes is \['lung'\]; want the 14 findings of vbd"),
        ({"config_hash": "0" * 16}, "config_hash '0000000000000000' is not the hash of its config"),
        ({"config": {"detector": "yolov5"}}, "config.detector is 'yolov5'"),
        ({"step": None}, "no field step; was it edited"),
        ({"step": -1}, "step is -1; want 0 to"),
        ({"prepared_size": -1}, "prepared_size is -1; want 0 to 8192"),
        ({"image_format": "bmp"}, "image_format is 'bmp'; want one of 'png', 'png16' or 'jpeg'"),
        ({"resize": "sideways"}, "resize is 'sideways'; want one of 'stretch' or 'letterbox'"),
        ({"metrics": {"score": "x"}}, "metrics.score is 'x'; want null, or 0 to 1"),
        ({"config": {"learning_rte": 1}}, "config.learning_rte is 1; want no such field"),
    ],
)
def test_a_description_that_does_not_hold_is_refused(
    change: dict[str, Any], told: str, prepared: str, tmp_path: Path
) -> None:
    changed = _write(tmp_path / "c", prepared) | change
    kept = {name: value for name, value in changed.items() if value is not None or name not in change}
    storage.write_json(str(tmp_path / "c" / "config.json"), kept)
    with pytest.raises(InputError, match=rf"config\.json: {told}"):
        read_info(str(tmp_path / "c"))


def test_a_broken_checkpoint_is_refused_in_one_line(prepared: str, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    description = _write(folder, prepared)
    weights = (folder / "model.pt").read_bytes()
    code = b"cposix\nsystem\n(S'true'\ntR."
    for data in (weights[: len(weights) // 2], b"", code):
        (folder / "model.pt").write_bytes(data)
        with pytest.raises(InputError, match=rf"model\.pt: truncated, {len(data)} of {len(weights)} bytes"):
            load_detector(str(folder))
    (folder / "model.pt").write_bytes(code.ljust(len(weights), b"."))
    with pytest.raises(InputError, match=r"model\.pt: not the file that was written beside its config\.json"):
        load_detector(str(folder))
    # An older checkpoint, which does not tell what its files should be.
    storage.write_json(str(folder / "config.json"), {k: v for k, v in description.items() if k != "files"})
    for data in (weights[: len(weights) // 2], b"", code):
        (folder / "model.pt").write_bytes(data)
        with pytest.raises(InputError, match=r"model\.pt: truncated or not a file of weights"):
            load_detector(str(folder))
    torch.save({"weight": torch.ones(1)}, folder / "model.pt")
    with pytest.raises(InputError, match="not the weights of yolox"):
        load_detector(str(folder))
    (folder / "model.pt").unlink()
    with pytest.raises(InputError, match=r"model\.pt: no such file; the checkpoint is not whole"):
        load_detector(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="not a checkpoint"):
        read_info(str(folder))


def test_only_whole_checkpoints_are_gone_on_with(prepared: str, tmp_path: Path) -> None:
    assert whole_checkpoints(str(tmp_path / "nothing")) == []
    train(CONFIG, open_dataset(prepared), options=CPU, report=Reports(tmp_path))
    for number, step in enumerate(("1", "2")):
        (tmp_path / step).rename(tmp_path / f"checkpoint_00000{number}")
    older, newer = str(tmp_path / "checkpoint_000000"), str(tmp_path / "checkpoint_000001")
    (tmp_path / "checkpoint_000002").mkdir()
    assert whole_checkpoints(str(tmp_path)) == [older, newer]
    state = Path(newer, "state.pt").read_bytes()
    Path(newer, "state.pt").write_bytes(state[: len(state) // 2])
    assert whole_checkpoints(str(tmp_path)) == [older]
    Path(older, "out_of_fold.parquet").unlink()
    assert whole_checkpoints(str(tmp_path)) == []


def test_a_full_disk_leaves_no_half_checkpoint(prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(InputError, match="is the disk full"):
        _write(tmp_path / "c", prepared)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_hold_nan_are_refused(prepared: str, tmp_path: Path) -> None:
    weights = detector_of(CONFIG, with_first_weights=False).state_dict()
    name = next(name for name, tensor in weights.items() if tensor.ndim == 4)
    weights[name][0, 0, 0] = torch.nan
    _write(tmp_path / "c", prepared, weights=weights)
    side = weights[name].shape[-1]
    told = rf"c/model\.pt: tensor {re.escape(name)} holds NaN \({side} of {weights[name].numel():,} values\), so it finds nothing"
    for look in (load_detector, lambda folder: open_checkpoint(folder, [])):
        with pytest.raises(InputError, match=told):
            look(str(tmp_path / "c"))
