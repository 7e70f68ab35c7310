"""First weights: from a library, a checkpoint or any other file, and which of a detector's layers they reached."""

import contextlib
import http.client
import io
import pickle
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vbd import storage
from vbd.errors import InputError, StoreError

# Seconds without an answer after which a download has failed.
_PATIENCE_S = 20
# Under which a file of a library keeps its tensors; a running mean comes first.
_CONTAINERS = ("model_ema", "state_dict_ema", "model", "state_dict")
# What distinguishes the same tensor in an adapter, a library, and a library's parallel training.
_WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)*(network\.)?|(?<=box_predictor)\.predictor")
# What reading a broken file of weights raises, besides OSError.
_BROKEN = (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError)
# Groups of names that `describe` prints for each list.
_MAX_GROUPS = 6


@dataclass(frozen=True)
class FirstWeights:
    """Where a detector's first weights came from; names of tensors, without scalars such as counters of batches."""

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]  # of the detector, at random values
    unused: tuple[str, ...]  # of the source


def load_tensors(path: str) -> dict[str, Any]:
    """A file of tensors and plain values; code in it is never run. Raises InputError when it is broken or holds code."""
    return read_tensors(storage.read_bytes(path), path)


def read_tensors(data: bytes, path: str) -> dict[str, Any]:
    """The same of the content of the file at `path`."""
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file may fail anywhere in the parser, with any error
        raise InputError(f"{path}: truncated or not a file of weights ({_reason(error)}); use another one") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, want tensors by name; use another checkpoint")
    return content


def _numpy_scalars() -> list[Any]:
    """What a number of numpy is made of: YOLOX's trainer keeps its best score as one. Files name old and new modules."""
    from numpy._core.multiarray import scalar

    kinds = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    return [*kinds, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def load_file(detector: nn.Module, location: str) -> FirstWeights:
    """Loads a checkpoint folder of vbd, or a file of it or of the detector's library, into every layer that fits.

    Raises InputError for a file that is missing, broken, or of another detector.
    """
    tensors = _tensors_in(load_tensors(_file_of(location)))
    first = load_fitting(detector, tensors, source=location)
    if not set(first.loaded) & {name for name, _ in detector.named_parameters()}:
        raise InputError(
            f"weights {location}: none of its {len(tensors)} tensors fits the detector, by name and shape; "
            "give weights of the same family and variant"
        )
    return first


def _file_of(location: str) -> str:
    if storage.exists(storage.join(location, "model.pt")):
        return storage.join(location, "model.pt")
    if storage.is_folder(location):
        raise InputError(f"weights {location}: no model.pt in this folder; give a checkpoint's folder or a file")
    return location


def load_fitting(detector: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> FirstWeights:
    """Copies every tensor whose name and shape fit; names may lack what an adapter puts before or into them."""
    own = detector.state_dict()
    by_name = {_plain(name): name for name in own}
    backbone = next((name for name, module in detector.named_modules() if module is detector.backbone), "")
    fits, unused = {}, []
    for name, tensor in tensors.items():
        candidates = (_plain(name), _renamed(_plain(name)), _plain(f"{backbone}.{_plain(name)}"))
        target = next((by_name[candidate] for candidate in candidates if candidate in by_name), None)
        if target is not None and own[target].shape == tensor.shape:
            fits[target] = tensor
        elif tensor.ndim:
            unused.append(name)
    detector.load_state_dict(own | fits)
    return FirstWeights(
        source=source,
        loaded=tuple(name for name in own if name in fits and own[name].ndim),
        new=tuple(name for name in own if name not in fits and own[name].ndim),
        unused=tuple(unused),
    )


def describe(first: FirstWeights) -> str:
    """Some lines: how many tensors were loaded, are new, or were left out, by the module that they belong to."""
    lists = {"loaded": first.loaded, "new": first.new, "left out": first.unused}
    return "\n".join(
        [f"first weights: {first.source}", *(f"  {what:8} {_grouped(names)}" for what, names in lists.items())]
    )


def _grouped(names: tuple[str, ...]) -> str:
    """`3: network.head (2), network.backbone (1)`, by the longest prefixes that make few groups."""
    if not names:
        return "0"
    groups = Counter(name.split(".")[0] for name in names)
    for depth in range(2, 8):
        finer = Counter(".".join(name.split(".")[:depth]) for name in names)
        if len(finer) > _MAX_GROUPS:
            break
        groups = finer
    listed = [f"{prefix} ({count})" for prefix, count in groups.most_common(_MAX_GROUPS)]
    if len(groups) > _MAX_GROUPS:
        listed.append(f"and {len(groups) - _MAX_GROUPS} more")
    return f"{len(names)}: {', '.join(listed)}"


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _renamed(name: str) -> str:
    """torchvision's names of today for those in its older files: there a convolution was no block of its own."""
    name = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    name = re.sub(r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    return re.sub(
        r"(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)$",
        lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}",  # every second one was an activation
        name,
    )


def _tensors_in(content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file by name: at the top, or where the libraries keep them."""
    inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)), content)
    return {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}


def hub_file(name: str) -> Path:
    """Where torch, and the libraries that use its hub, keep a file of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def timm_url(name: str) -> tuple[str, str]:
    """Where timm has a network's weights, and under which name its file is kept."""
    import timm
    from huggingface_hub import hf_hub_url

    published = timm.models.get_pretrained_cfg(name)
    if published.url:
        return published.url, published.url.rsplit("/", 1)[-1]
    return hf_hub_url(published.hf_hub_id, "pytorch_model.bin"), f"{published.hf_hub_id.rsplit('/', 1)[-1]}.bin"


def fetch_tensors(what: str, *, url: str, file: str) -> dict[str, Tensor]:
    """The weights at an address, kept as `file` by torch's hub; raises as `fetching` does."""
    with fetching(what, url=url, path=hub_file(file)):
        return torch.hub.load_state_dict_from_url(
            url, file_name=file, progress=False, map_location="cpu", weights_only=True
        )


@contextlib.contextmanager
def fetching(what: str, *, url: str, path: Path) -> Iterator[None]:
    """Turns a failed download of `url` into one line that says where its file may be put by hand, and as what.

    A StoreError: another attempt may succeed, and a search must not take it for a fault of the trial.
    """
    was_there, patience = path.exists(), socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)  # torch's hub waits for minutes
    try:
        yield
    except (OSError, http.client.HTTPException, *_BROKEN) as error:
        if was_there:
            raise InputError(
                f"{what}: {path} is broken or not the file of {url} ({_reason(error)}); remove it or fetch it again"
            ) from error
        raise StoreError(
            f"{what}: cannot fetch {url} ({_reason(error)}); train without pretrained weights, "
            f"or fetch the file elsewhere and put it into {path.parent} as {path.name}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "it holds other things than tensors, which are not loaded"
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
