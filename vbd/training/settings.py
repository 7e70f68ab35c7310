"""What a training run is told on the command line: the files that configurations come from, and `--set name=value`."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from vbd import storage
from vbd.config import VARIANTS, RunOptions, TrainConfig, in_words, literals, train_config_from
from vbd.config.checked import check_rules
from vbd.config.presets import with_steps
from vbd.errors import InputError

# Fields that a flag of their own sets, and which.
_FLAGS = {"fold": "--folds", "device": "--gpu", "loader_workers": "--loader-workers", "input": "--input"}
_SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Settings:
    """Fields of TrainConfig and of RunOptions that replace what they were."""

    config: dict[str, Any]
    options: dict[str, Any]


def parse_settings(items: Sequence[str], *, weights: str = "") -> Settings:
    """`name=value` of each item by its field's type; `weights` is short for `weights=...`.

    Raises InputError for a name that is none, or a value of another type.
    """
    kinds = get_type_hints(TrainConfig), get_type_hints(RunOptions)
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for item in [*items, *([f"weights={weights}"] if weights else [])]:
        name, equals, text = item.partition("=")
        hints = [kind for kind in kinds if name in kind]
        if name in _FLAGS:
            raise InputError(f"--set {item}: it has a flag of its own, {_FLAGS[name]}")
        if not equals or not hints:
            names = sorted({*kinds[0], *kinds[1]} - set(_FLAGS))
            raise InputError(f"--set {item}: want name=value with one of the names {', '.join(names)}")
        found[kinds.index(hints[0])][name] = parse_value(text, hints[0][name], where=f"--set {item}")
    if found[0].get("weights"):
        found[0]["weights"] = storage.absolute(found[0]["weights"])  # a worker may stand elsewhere
    return Settings(*found)


def parse_value(text: str, hint: Any, *, where: str) -> Any:
    """A value of a field's type: lists as `1,12`, and `none` where there may be none; raises InputError that begins `where`."""
    if get_origin(hint) is tuple:
        return tuple(parse_value(part, get_args(hint)[0], where=where) for part in text.split(",") if part)
    if allowed := literals(hint):
        if text not in allowed:
            raise InputError(f"{where}: choose one of {in_words(allowed)}")
        return text
    if NoneType in get_args(hint):
        (kind,) = (part for part in get_args(hint) if part is not NoneType)
        return None if text == "none" else parse_value(text, kind, where=where)
    try:
        value = _SWITCH[text.lower()] if hint is bool else hint(text)
    except (KeyError, ValueError):
        value = math.nan
    if value != value or value in (math.inf, -math.inf):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[hint]
        raise InputError(f"{where}: want {wanted}")
    return value


def changed(config: TrainConfig, settings: Settings) -> TrainConfig:
    """The checked configuration with the settings in it.

    Warm-up and reports keep their share of another number of steps, another detector starts with its smallest variant and
    weights of one's own replace the library's, unless a setting says otherwise.
    """
    values = settings.config
    if values.get("steps", 0) > 0:
        config = with_steps(config, values["steps"])
    implied: dict[str, Any] = {"pretrained": False} if values.get("weights") else {}
    if "detector" in values and values["detector"] != config.detector:
        implied["variant"] = VARIANTS[values["detector"]][0]
    return train_config_from(dataclasses.asdict(config) | implied | values, where="--set")


def changed_options(options: RunOptions, settings: Settings) -> RunOptions:
    """The options with the settings in them."""
    changed_to = replace(options, **settings.options)
    check_rules(changed_to, lambda name, value: f"--set {name}={value}:")
    return changed_to


def config_from_file(location: str) -> TrainConfig:
    """A configuration from a JSON file of its fields, from a checkpoint's folder, or from the `config.json` in one.

    A relative path of `weights` in it is below the working directory, like one of a flag.
    """
    inside = storage.join(location, "config.json")
    where = location if location.endswith(".json") or not storage.exists(inside) else inside
    values = storage.read_object(where)
    fields = values["config"] if isinstance(values.get("config"), dict) else values
    config = train_config_from(fields, where=where)
    return replace(config, weights=storage.absolute(config.weights)) if config.weights else config
