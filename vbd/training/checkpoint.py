"""A checkpoint is a folder that loads by itself: weights, training state, and its config as JSON.

`model.pt` holds weights only (their running mean when the run keeps one), `state.pt` what resuming needs besides, and
`config.json` the config with its hash, the classes, the dataset's fingerprint and the versions of the libraries.
"""

import dataclasses
import io
import shutil
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vbd
from vbd import storage
from vbd.boxes import ResizeMode
from vbd.config import Channels, ImageFormat, TrainConfig, config_hash, train_config_from
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES
from vbd.models import detector_of
from vbd.models.weights import load_tensors
from vbd.training.members import OUT_OF_FOLD

SCHEMA = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """What `config.json` of a checkpoint says."""

    config: TrainConfig
    config_hash: str
    dataset: str  # fingerprint of the prepared dataset it was trained on
    resize: ResizeMode  # how that dataset made its images square
    step: int
    metrics: dict[str, Any]
    # What else that dataset made of its images, so that a raw film becomes what the detector learnt from.
    channels: Channels = "grey"
    image_format: ImageFormat = "png"
    prepared_size: int = 0  # pixels; 0 in older checkpoints, which do not tell


def write_checkpoint(
    folder: str | Path,
    *,
    config: TrainConfig,
    dataset: PreparedDataset,
    weights: dict[str, Any],
    state: dict[str, Any],
    step: int,
    metrics: dict[str, Any],
) -> None:
    """Writes the folder under a temporary name and renames it, replacing an older one."""
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        torch.save(weights, temporary / "model.pt")
        torch.save(state, temporary / "state.pt")
        storage.write_json(str(temporary / "config.json"), _description(config, dataset, step, metrics))
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{target}: the checkpoint cannot be written ({error}); is the disk full?") from error


def _description(config: TrainConfig, dataset: PreparedDataset, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "config": dataclasses.asdict(config),
        "config_hash": config_hash(config),
        "classes": CLASS_NAMES,
        "dataset": dataset.fingerprint,
        "synthetic": dataset.synthetic,
        "resize": dataset.options.resize,
        "channels": dataset.options.channels,
        "image_format": dataset.options.image_format,
        "prepared_size": dataset.options.image_size,
        "step": step,
        "metrics": metrics,
        "versions": {"vbd": vbd.__version__, "torch": torch.__version__},
    }


def read_info(folder: str) -> CheckpointInfo:
    """The description of a checkpoint; raises InputError when it is missing, foreign, or not what it says it is."""
    location = storage.join(folder, "config.json")
    if not storage.exists(location):
        raise InputError(f"{folder}: not a checkpoint (no config.json); give the folder that holds model.pt")
    content = storage.read_object(location)
    try:
        if content["schema"] != SCHEMA:
            raise InputError(f"{location}: schema {content['schema']!r}, want {SCHEMA}; train again with this version")
        if content["classes"] != list(CLASS_NAMES):
            raise InputError(f"{location}: its {len(content['classes'])} classes are not the 14 findings of vbd")
        config = train_config_from(content["config"], where=location)
        if config_hash(config) != content["config_hash"]:
            raise InputError(f"{location}: config_hash {content['config_hash']!r} is not the hash of its config")
        return CheckpointInfo(
            config=config,
            step=content["step"],
            channels=content.get("channels", "grey"),
            image_format=content.get("image_format", "png"),
            prepared_size=content.get("prepared_size", 0),
            **{name: content[name] for name in ("config_hash", "dataset", "resize", "metrics")},
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{location}: field {error} is missing or wrong; this is not a checkpoint of vbd") from None


def whole_checkpoints(folder: str) -> list[str]:
    """The finished checkpoints directly below a folder, by name, the newest last.

    A process that is killed leaves folders that were half copied, and a journal that names folders which are gone: what
    can be loaded is asked of the disk.
    """
    names = [storage.join(folder, name) for name in storage.list_names(folder) if name.startswith("checkpoint_")]
    return [name for name in names if _is_whole(name)]


def _is_whole(folder: str) -> bool:
    try:
        read_info(folder)
        storage.read_table(storage.join(folder, OUT_OF_FOLD), ["image_id"])
        files = [storage.read_bytes(storage.join(folder, name)) for name in ("model.pt", "state.pt")]
    except InputError:
        return False
    # torch writes zip archives, whose directory stands at the end: a truncated one has none.
    return all(zipfile.is_zipfile(io.BytesIO(data)) for data in files)


def load_detector(folder: str) -> tuple[nn.Module, CheckpointInfo]:
    """The detector of a checkpoint, in eval mode on the CPU, and its description."""
    info = read_info(folder)
    detector = detector_of(info.config, with_first_weights=False)
    try:
        detector.load_state_dict(load_tensors(storage.join(folder, "model.pt")))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:120]
        raise InputError(f"{folder}/model.pt: not the weights of {info.config.detector} ({reason})") from None
    return detector.eval(), info
