"""A checkpoint is a folder that loads by itself: weights, training state, and its config as JSON.

`model.pt` holds weights only (their running mean when the run keeps one), `state.pt` what resuming needs besides, and
`config.json` the config with its hash, the classes, the dataset's fingerprint, the versions of the libraries, and size and
SHA-256 of the other two, so that a file which is truncated or of another checkpoint is told before it is read.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import platform
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

import vbd
from vbd import storage
from vbd.config import Channels, Family, ImageFormat, TrainConfig, check_train_config, checked, config_hash
from vbd.config.checked import Count, Fields, Rule, between
from vbd.config.fields import ResizeMode
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError, StoreError
from vbd.labels import CLASS_NAMES
from vbd.models import detector_of
from vbd.models.weights import FirstWeights, load_tensors, read_tensors  # noqa: F401  # the first is told with these
from vbd.records import Report
from vbd.training.members import OUT_OF_FOLD, Member

SCHEMA = 1
_AGAIN = "train again with this version"
_PARTS = ("model.pt", "state.pt")
# Packages whose version decides what a config trains; each is asked of its metadata, not imported.
_PACKAGES = {"torch": "torch", "torchvision": "torchvision", "effdet": "effdet", "yolox": "pixeltable-yolox"}


@dataclass(frozen=True)
class PartFacts:
    """What a file of a checkpoint was when it was written."""

    size: Count  # bytes
    sha256: str


def _are_parts(files: Mapping[str, PartFacts]) -> bool:
    return not files or set(files) == set(_PARTS)


@dataclass(frozen=True)
class CheckpointInfo:
    """What `config.json` of a checkpoint says."""

    config: TrainConfig
    config_hash: str
    dataset: str  # fingerprint of the prepared dataset it was trained on
    resize: ResizeMode  # how that dataset made its images square
    step: Count
    metrics: Report
    # What else that dataset made of its images, so that a raw film becomes what the detector learnt from.
    channels: Channels = "grey"
    image_format: ImageFormat = "png"
    prepared_size: Annotated[int, between(0, 8192)] = 0  # pixels; 0 in older checkpoints, which do not tell
    # Where its first weights came from, and how many tensors were loaded, new and left out; None: all were random.
    first_weights: Annotated[dict[str, Any], Fields({"source": str}, other=Count)] | None = None
    # The most images that went through the detector at a time; 0 in older checkpoints.
    micro_batch: Count = 0
    # Size and SHA-256 of model.pt and state.pt; empty in older checkpoints.
    files: Annotated[dict[str, PartFacts], Rule("model.pt and state.pt, or nothing", _are_parts)] = field(
        default_factory=dict
    )
    classes: Annotated[tuple[str, ...], Rule("the 14 findings of vbd", CLASS_NAMES.__eq__)] = CLASS_NAMES


def write_checkpoint(
    folder: str | Path,
    *,
    config: TrainConfig,
    dataset: PreparedDataset,
    weights: dict[str, Any],
    state: dict[str, Any],
    step: int,
    metrics: dict[str, Any],
    first_weights: dict[str, Any] | None = None,
    micro_batch: int = 0,
) -> None:
    """Writes the folder under a temporary name and renames it, replacing an older one."""
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        torch.save(weights, temporary / "model.pt")
        torch.save(state, temporary / "state.pt")
        description = _description(config, dataset) | {
            "step": step,
            "metrics": metrics,
            "first_weights": first_weights,
            "micro_batch": micro_batch,
            "files": {name: _facts(temporary / name) for name in _PARTS},
        }
        storage.write_json(str(temporary / "config.json"), description)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"{target}: the checkpoint cannot be written ({error}); is the disk full?") from error


def _description(config: TrainConfig, dataset: PreparedDataset) -> dict[str, Any]:
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
        "versions": {"vbd": vbd.__version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(package) for name, package in _PACKAGES.items()},
    }


def _facts(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def count_first(first: FirstWeights | None) -> dict[str, Any] | None:
    """What a checkpoint keeps of the weights that a detector started from; None when they were random."""
    if first is None:
        return None
    return {
        "source": first.source,
        "loaded": len(first.loaded),
        "new": len(first.new),
        "unused": len(first.unused),
    }


def family_of(member: Member) -> Family:
    """What the checkpoints of a member are."""
    return read_info(member.folders[0]).config.detector


def read_info(folder: str) -> CheckpointInfo:
    """The description of a checkpoint; raises InputError when it is missing, foreign, or not what it says it is."""
    location = storage.join(folder, "config.json")
    if not storage.exists(location):
        raise InputError(f"{folder}: not a checkpoint (no config.json); give the folder that holds model.pt")
    info = checked.read(location, CheckpointInfo, schema=SCHEMA, again=_AGAIN)
    check_train_config(info.config, where=f"{location}: config")
    if config_hash(info.config) != info.config_hash:
        raise checked.wrong(location, f"config_hash {info.config_hash!r} is not the hash of its config", again=_AGAIN)
    return info


def whole_checkpoints(folder: str, *, prefix: str = "checkpoint_") -> list[str]:
    """The finished checkpoints directly below a folder whose names begin so, by name, the newest last.

    A process that is killed leaves folders that were half copied, and a journal that names folders which are gone: what
    can be loaded is asked of the disk.
    """
    names = [name for name in storage.list_names(folder) if name.startswith(prefix) and not name.endswith(".tmp")]
    return [place for name in names if _is_whole(place := storage.join(folder, name))]


def _is_whole(folder: str) -> bool:
    try:
        info = read_info(folder)
        storage.read_table(storage.join(folder, OUT_OF_FOLD), ["image_id"])
        if info.files:  # one listing: the sizes tell what was half copied
            found = storage.list_files(folder)
            return all(name in found and found[name].size == info.files[name].size for name in _PARTS)
        files = [storage.read_bytes(storage.join(folder, name)) for name in _PARTS]
    except InputError:
        return False
    # torch writes zip archives, whose directory stands at the end: a truncated one has none.
    return all(zipfile.is_zipfile(io.BytesIO(data)) for data in files)


def read_part(folder: str, name: str, info: CheckpointInfo) -> dict[str, Any]:
    """The tensors of `model.pt` or `state.pt`; InputError when it is missing, broken, or not this checkpoint's own."""
    location = storage.join(folder, name)
    if not storage.exists(location):
        raise InputError(f"{location}: no such file; the checkpoint is not whole: copy it again, or use another one")
    data = storage.read_bytes(location)
    facts = info.files.get(name)
    if facts and len(data) < facts.size:
        raise InputError(
            f"{location}: truncated, {len(data)} of {facts.size} bytes; copy the checkpoint again, or use another one"
        )
    if facts and hashlib.sha256(data).hexdigest() != facts.sha256:
        raise InputError(
            f"{location}: not the file that was written beside its config.json (another SHA-256); "
            "copy the checkpoint again, or use another one"
        )
    return read_tensors(data, location)


def read_weights(folder: str, info: CheckpointInfo) -> dict[str, Any]:
    """The tensors of `model.pt`; raises InputError, beside that of `read_part`, for one that holds NaN."""
    weights = read_part(folder, "model.pt", info)
    for name, tensor in weights.items():
        if isinstance(tensor, torch.Tensor) and (count := int(torch.isnan(tensor).sum())):
            raise InputError(
                f"{storage.join(folder, 'model.pt')}: tensor {name} holds NaN ({count:,} of {tensor.numel():,} values), so it "
                "finds nothing; use another checkpoint"
            )
    return weights


@contextlib.contextmanager
def foreign_told(location: str, info: CheckpointInfo) -> Iterator[None]:
    """Turns the failure to load tensors of another detector, or of no detector at all, into one line."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # torch's first line names the class, its second what does not fit.
        reason = lines[min(1, len(lines) - 1)][:120]
        raise InputError(
            f"{location}: not the weights of {info.config.detector} {info.config.variant} ({reason}); use another checkpoint"
        ) from None


def load_detector(folder: str) -> tuple[nn.Module, CheckpointInfo]:
    """The detector of a checkpoint, in eval mode on the CPU, and its description."""
    info = read_info(folder)
    detector = detector_of(info.config, with_first_weights=False)
    with foreign_told(storage.join(folder, "model.pt"), info):
        detector.load_state_dict(read_weights(folder, info))
    return detector.eval(), info
