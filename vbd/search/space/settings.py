"""What a search is told on the command line, on top of its preset: `--set name=value`, `--vary name=values`, and budgets.

A name may be one family's: `yolox.variant=s`. Otherwise it is that of all families that have the field.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_origin, get_type_hints

from vbd import storage
from vbd.config import ANCHORED, FAMILIES, VARIANTS, Candidate, Device, Family, RunOptions, SearchConfig, TrainConfig
from vbd.config.checked import check_rules
from vbd.config.presets import with_steps
from vbd.errors import InputError
from vbd.search.space.draws import spaces_of
from vbd.training.settings import Settings, changed, changed_options, parse_value

# Fields that a flag of their own sets, and which.
_FLAGS = {
    **{"steps": "--steps", "seed": "--seed", "detector": "--families", "trials": "--trials"},
    **{"warm_start": "--warm-start", "candidates": "--vary", "preset": "the first word"},
    **{"device": "--device", "loader_workers": "--loader-workers"},
}
_SEARCH, _OPTIONS = get_type_hints(SearchConfig), get_type_hints(RunOptions)
_CONFIG = get_type_hints(TrainConfig)
_CANDIDATE = {"trials": int, "equal_epochs": bool}


@dataclass(frozen=True)
class Setting:
    """One `name=text`, as it was given."""

    item: str
    family: Family | Literal[""]  # empty: all that have the field
    name: str
    text: str

    def concerns(self, family: Family, values: Iterable[Any]) -> bool:
        """Whether a family is meant, and has a field of this name that may take these values."""
        if self.family:
            return self.family == family
        if self.name == "variant":
            return set(values) <= set(VARIANTS[family])
        return family in ANCHORED or not self.name.startswith("anchor_")


def search_from(
    preset: SearchConfig,
    *,
    steps: int | None = None,
    trials: int | None = None,
    seed: int = 0,
    families: Sequence[Family] = (),
    set: Sequence[str] = (),
    vary: Sequence[str] = (),
    warm_start: str = "",
) -> SearchConfig:
    """A preset as the flags of jobs/tune.py change it; None, nought and nothing leave what the preset says.

    Raises InputError, on one line, for a name that is none, a value that is none, or a space that cannot be drawn from.
    """
    for name, value, least in (("steps", steps, 1), ("trials", trials, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: want {least} or more")
    candidates = [_with_budget(c, steps=steps, trials=trials, seed=seed) for c in _chosen(preset, families)]
    settings, varied = [_setting(item, "--set") for item in set], [_setting(item, "--vary") for item in vary]
    _check_once(settings, varied)
    candidates = _with_settings(candidates, [s for s in settings if s.name in _CONFIG or s.name in _CANDIDATE])
    for setting in varied:
        candidates = _with_dimension(candidates, setting)
    own = {s.name: parse_value(s.text, _SEARCH[s.name], where=f"--set {s.item}") for s in settings if _is_search(s)}
    search = replace(
        preset,
        candidates=tuple(candidates),
        seed=seed,
        warm_start=warm_start,
        **own,
    )
    check_rules(search, lambda name, value: f"--set {name}={value}:")
    for setting in varied:
        if search.searcher == "grid" and ".." in setting.text:
            raise InputError(f"--vary {setting.item}: a grid takes values, separated by commas")
    spaces_of(search)
    return search


def run_folder(storage_root: str, name: str) -> str:
    """The folder of the run of a name; raises InputError for a name that is no plain one."""
    if not storage.is_safe_id(name):
        raise InputError(f"--name {name!r}: want letters, digits, and . _ - only, no path")
    return storage.join(storage.absolute(storage_root), name)


def options_from(set: Sequence[str], *, device: Device = "auto", loader_workers: int = 0) -> RunOptions:
    """The options of all trials: those of the flags, and those among the settings."""
    found = [setting for setting in (_setting(item, "--set") for item in set) if setting.name in _OPTIONS]
    values = {s.name: parse_value(s.text, _OPTIONS[s.name], where=f"--set {s.item}") for s in found}
    return changed_options(RunOptions(device=device, loader_workers=loader_workers), Settings({}, values))


def _is_search(setting: Setting) -> bool:
    return setting.name in _SEARCH and not setting.family


def _setting(item: str, flag: str) -> Setting:
    """The parts of `name=text` or `family.name=text`; raises InputError for a name that the flag does not know."""
    left, equals, text = item.partition("=")
    before, dot, name = left.rpartition(".")
    family: Family | Literal[""] = next((family for family in FAMILIES if family == before), "")
    if dot and not family:
        raise InputError(f"{flag} {item}: {before!r} is no family; choose one of {', '.join(FAMILIES)}")
    known = _CONFIG if flag == "--vary" else _CONFIG | _CANDIDATE | ({} if family else _SEARCH | _OPTIONS)
    if name in _FLAGS and flag == "--set" and not (family and name == "trials"):
        raise InputError(f"{flag} {item}: it has a flag of its own, {_FLAGS[name]}")
    if not equals or name not in known:
        names = sorted(known.keys() - _FLAGS.keys())
        wanted = "name=value,value or name=low..high" if flag == "--vary" else "name=value"
        raise InputError(f"{flag} {item}: want {wanted} with one of the names {', '.join(names)}")
    return Setting(item, family, name, text)


# ------------------------------------------------------------------------------------------------------------ families


def _chosen(preset: SearchConfig, families: Sequence[Family]) -> list[Candidate]:
    there = [candidate.base.detector for candidate in preset.candidates]
    for family in families:
        if family not in there:
            raise InputError(f"--families {family}: preset {preset.preset} has {', '.join(there)}")
    return [candidate for candidate in preset.candidates if not families or candidate.base.detector in families]


def _with_budget(candidate: Candidate, *, steps: int | None, trials: int | None, seed: int) -> Candidate:
    """Other steps take what counts in steps along, and another seed the seeds that are compared."""
    base = candidate.base
    choices, ranges = dict(candidate.choices), dict(candidate.ranges)
    share = (steps or base.steps) / base.steps
    for name, least in (("warmup_steps", 0), ("report_every", 1)):
        if name in choices:
            choices[name] = tuple(dict.fromkeys(max(least, round(value * share)) for value in choices[name]))
        if name in ranges:
            low, high = ranges[name]
            ranges[name] = (max(least, round(low * share)), max(least, round(high * share)))
    if "seed" in choices:
        choices["seed"] = tuple(seed + number for number in choices["seed"])
    return replace(
        candidate,
        base=with_steps(replace(base, seed=seed), steps or base.steps),
        choices=choices,
        ranges=ranges,
        trials=trials or candidate.trials,
    )


# ------------------------------------------------------------------------------------------------------ set and vary


def _with_settings(candidates: Sequence[Candidate], settings: Sequence[Setting]) -> list[Candidate]:
    """A field that is set is varied no more."""
    hints = _CONFIG | _CANDIDATE
    given = [(s, parse_value(s.text, hints[s.name], where=f"--set {s.item}")) for s in settings]
    for setting, value in given:
        _check_meets(candidates, setting, [value], flag="--set")
    result = []
    for candidate in candidates:
        mine = {s.name: value for s, value in given if s.concerns(candidate.base.detector, [value])}
        mine |= {
            s.name: value for s, value in given if s.family == candidate.base.detector
        }  # its own stand above all's
        if mine.get("weights"):
            mine["weights"] = storage.absolute(mine["weights"])
        fields = {name: value for name, value in mine.items() if name in _CONFIG}
        result.append(
            replace(
                candidate,
                base=changed(candidate.base, Settings(fields, {})),
                choices={name: values for name, values in candidate.choices.items() if name not in fields},
                ranges={name: bounds for name, bounds in candidate.ranges.items() if name not in fields},
                **{name: value for name, value in mine.items() if name in _CANDIDATE},
            )
        )
    return result


def _with_dimension(candidates: Sequence[Candidate], setting: Setting) -> list[Candidate]:
    """The candidates with a field varied by the values, or within the bounds, of a setting."""
    where = f"--vary {setting.item}"
    low, dots, high = setting.text.partition("..")
    if dots:
        if _CONFIG[setting.name] not in (int, float):
            raise InputError(f"{where}: the field is no number; give values, separated by commas")
        bounds = tuple(parse_value(text, _CONFIG[setting.name], where=where) for text in (low, high))
        if bounds[0] == bounds[1]:
            raise InputError(f"{where}: the range is empty; give a higher end, or --set {setting.name}={low}")
        values: tuple[Any, ...] = ()
    else:
        bounds, values = (), _values(setting, where)
    _check_meets(candidates, setting, values, flag="--vary")
    result = []
    for candidate in candidates:
        if not setting.concerns(candidate.base.detector, values):
            result.append(candidate)
            continue
        choices = {name: old for name, old in candidate.choices.items() if name != setting.name or values}
        ranges = {name: old for name, old in candidate.ranges.items() if name != setting.name or bounds}
        if values:
            choices[setting.name] = values
        else:
            ranges[setting.name] = bounds
        result.append(replace(candidate, choices=choices, ranges=ranges))
    return result


def _values(setting: Setting, where: str) -> tuple[Any, ...]:
    """Values separated by commas; lists, which have commas of their own, by slashes."""
    hint = _CONFIG[setting.name]
    parts = setting.text.split("/" if get_origin(hint) is tuple else ",")
    values = [parse_value(part, hint, where=where) for part in parts]
    if setting.name == "weights":
        values = [storage.absolute(value) if value else "" for value in values]
    twice = next((part for part, value in zip(parts, values, strict=True) if values.count(value) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: {twice or 'the empty value'} is given twice; give each value once")
    return tuple(values)


def _check_once(settings: Sequence[Setting], varied: Sequence[Setting]) -> None:
    """Raises InputError for a name that is given twice for the same families, or both set and varied."""
    for given in (settings, varied):
        names = [(setting.family, setting.name) for setting in given]
        twice = next((setting for setting in given if names.count((setting.family, setting.name)) > 1), None)
        if twice is not None:
            flag = "--set" if given is settings else "--vary"
            raise InputError(f"{flag} {twice.item}: {twice.name} is given twice; give it once")
    for setting in varied:
        for other in settings:
            if other.name == setting.name and (not setting.family or other.family in ("", setting.family)):
                raise InputError(
                    f"--vary {setting.item}: contradicts --set {other.item}, which fixes the field; leave one of them out"
                )


def _check_meets(candidates: Sequence[Candidate], setting: Setting, values: Sequence[Any], *, flag: str) -> None:
    families = [candidate.base.detector for candidate in candidates]
    if not any(setting.concerns(family, values) for family in families):
        raise InputError(f"{flag} {setting.item}: no family of this search has that, which are {', '.join(families)}")
