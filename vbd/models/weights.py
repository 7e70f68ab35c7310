"""First weights: files of tensors, and which of a detector's layers they reached."""

import io
from dataclasses import dataclass
from typing import Any

import torch

from vbd import storage
from vbd.errors import InputError


@dataclass(frozen=True)
class FirstWeights:
    """Where a detector's first weights came from; names of its tensors, without scalars such as counters of batches."""

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]  # of the detector, at random values
    unused: tuple[str, ...]  # of the source


def load_tensors(path: str) -> dict[str, Any]:
    """A file of tensors and plain values; code in it is never run. Raises InputError when it is broken or holds code."""
    data = storage.read_bytes(path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file may fail anywhere in the parser, with any error
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path}: truncated or not a file of weights ({reason}); use another checkpoint") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, want tensors by name; use another checkpoint")
    return content
