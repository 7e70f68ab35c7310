"""The one reader of vbd's own JSON files, and the rules that values must follow.

A dataclass describes what a file holds: the type of each field, and beside it a rule, such as `Annotated[int, between(1, 1024)]`.
The same rules hold for flags (`vbd.cli`) and settings. A value that breaks one raises an InputError of one line that
names the file or flag, the field, the value and what is wanted.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vbd import storage
from vbd.config.difference import shortened, shortened_path
from vbd.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

# What is wanted, by the type of pydantic's error; the message of any other error says so itself.
_WANTED = {
    **{"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false", "string_type": "a text"},
    **{"list_type": "a list", "tuple_type": "a list", "dict_type": "an object", "dataclass_type": "an object"},
    **{
        "finite_number": "a finite number",
        "unexpected_keyword_argument": "no such field",
        "int_parsing": "a whole number",
    },
}


@dataclass(frozen=True)
class Rule:
    """What a value must be, declared beside the type of its field."""

    wanted: str
    holds: Callable[[Any], bool]

    def __get_pydantic_core_schema__(self, kind: Any, handler: Callable[[Any], Any]) -> Any:
        """Returns the schema with which pydantic checks the type and then the rule."""
        from pydantic_core import PydanticCustomError, core_schema  # 0.1 s: kept out of --help

        def check(value: Any) -> Any:
            if not self.holds(value):
                raise PydanticCustomError("rule", "{wanted}", {"wanted": self.wanted})
            return value

        return core_schema.no_info_after_validator_function(check, handler(kind))


@dataclass(frozen=True)
class Fields:
    """Marks a dict of which the fields in `known`, where it has them, are of these types, and all others of the type `other`."""

    known: Mapping[str, Any]
    other: Any

    def __get_pydantic_core_schema__(self, _kind: Any, handler: Any) -> Any:
        """Returns the schema of such a dict."""
        from pydantic_core import core_schema

        fields = {
            name: core_schema.typed_dict_field(handler.generate_schema(hint), required=False)
            for name, hint in self.known.items()
        }
        others = handler.generate_schema(self.other)
        return core_schema.typed_dict_schema(fields, extras_schema=others, extra_behavior="allow")

    def __hash__(self) -> int:
        return id(self)


class NanForNull:
    """Marks a number that JSON holds as null when it is NaN."""

    @classmethod
    def __get_pydantic_core_schema__(cls, kind: Any, handler: Callable[[Any], Any]) -> Any:
        """Returns the schema with which pydantic reads null as NaN."""
        from pydantic_core import core_schema

        nullable = core_schema.nullable_schema(handler(kind))
        return core_schema.no_info_after_validator_function(
            lambda value: math.nan if value is None else value, nullable
        )


def between(low: float, high: float, *, above: bool = False, below: bool = False) -> Rule:
    """A rule for numbers from `low` to `high`; with `above` or `below` that bound itself is excluded. NaN breaks it."""
    if above or below:
        wanted = f"{'more than' if above else 'at least'} {low} and {'less than' if below else 'at most'} {high}"
    else:
        wanted = f"{low} to {high}"

    def holds(value: float) -> bool:
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    return Rule(wanted, holds)


def null_or_between(low: float, high: float) -> Rule:
    """A rule for a value that is null, or a whole or other number from `low` to `high`; the value stays as it is."""
    return Rule(
        f"null, or {low} to {high}",
        lambda value: (
            value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high)
        ),
    )


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_below(path: str) -> bool:
    return not path or all(map(storage.is_safe_id, path.split("/")))


# A file's or folder's name: joined to a folder, it never leads out of it. The same for a path of several names, or of none.
SafeName = Annotated[str, Rule("a name of ASCII letters, digits and . _ -", storage.is_safe_id)]
PathBelow = Annotated[str, Rule("a path below this folder, of names of ASCII letters, digits and . _ -", _is_below)]
Count = Annotated[int, between(0, 2**53)]
Size = Annotated[int, between(1, 2**53)]
Number = Annotated[float, between(-1e15, 1e15)]
Seconds = Annotated[float, between(0, 1e12)]
Share = Annotated[float, between(0, 1)]
# NaN where there is nothing to score.
Score = Annotated[float, between(0, 1), NanForNull()]
# Any JSON value; nothing depends on its form.
Free = Annotated[Any, Rule("finite numbers", _is_finite)]


def read(location: str, kind: type[T], *, schema: int | None = None, again: str) -> T:
    """Reads a JSON file as the dataclass that describes it; `again` says how to make the file anew ("run the search again").

    Raises InputError for a file that is missing, is not JSON, has another `schema` or holds a wrong value.
    """
    return parse(storage.read_bytes(location), kind, where=location, schema=schema, again=again)


def parse(data: bytes, kind: type[T], *, where: str, schema: int | None = None, again: str) -> T:
    """Reads the bytes of a JSON file as `read` does; errors name it as `where`."""
    from pydantic import ValidationError
    from pydantic_core import from_json

    try:
        content = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise wrong(where, f"not valid JSON ({shortened_path(str(error))})", again=again) from None
    if not isinstance(content, dict):
        raise wrong(where, f"holds a JSON {type(content).__name__}, want an object", again=again)
    if schema is not None and content.get("schema") != schema:
        raise InputError(f"{where}: schema {shortened(content.get('schema'))}, want {schema}; {again}")
    try:
        found: T = _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        raise wrong(where, _problem(error), again=again) from None
    return found


def convert(values: Any, kind: type[T], *, where: str) -> T:
    """Plain values, such as those of flags, as the dataclass that describes them; raises InputError that begins with `where`."""
    from pydantic import ValidationError

    try:
        found: T = _adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {_problem(error)}") from None
    return found


def _adapter(kind: Any) -> "TypeAdapter[Any]":
    return _cached_adapter(kind)


@functools.cache
def _cached_adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def wrong(location: str, problem: str, *, again: str) -> InputError:
    """The error for content of a file that has the right types, but cannot be."""
    return InputError(f"{location}: {problem}; {_restore(again)}")


def _restore(again: str) -> str:
    return f"was it edited? restore it, or {again}"


def _problem(error: "ValidationError") -> str:
    """The first error of pydantic as `path is value; want ...`."""
    first = error.errors(include_url=False)[0]
    path = ""
    for step in first["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    if first["type"] == "missing":
        return f"no field {shortened_path(path)}"
    if first["type"] == "literal_error":
        wanted = f"one of {first['ctx']['expected']}"
    elif first["type"] == "value_error":
        return f"{shortened_path(path)}: {first['ctx']['error']}"
    else:
        wanted = _WANTED.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    return f"{shortened_path(path)} is {shortened(first['input'])}; want {wanted}"


# --------------------------------------------------------------------------------------------------- rules of one value


def broken_rule(hint: Any, value: Any) -> str:
    """What the rules beside a type want of a value that breaks one, of a list's items too; empty when it breaks none."""
    if value is None:
        return ""
    if get_origin(hint) is Annotated:
        kind, *rules = get_args(hint)
        broken = (rule.wanted for rule in rules if isinstance(rule, Rule) and not rule.holds(value))
        return next(broken, "") or broken_rule(kind, value)
    if get_origin(hint) in (Union, UnionType):
        return next(filter(None, (broken_rule(part, value) for part in get_args(hint))), "")
    if get_origin(hint) is tuple:
        return next(filter(None, (broken_rule(get_args(hint)[0], item) for item in value)), "")
    return ""


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields or a function's arguments, with the rules beside them."""
    return get_type_hints(kind, include_extras=True)


def check_rules(values: object, place: Callable[[str, Any], str]) -> None:
    """Raises InputError for the first field of a dataclass that breaks a rule; it begins with `place` of its name and value."""
    kind: Any = type(values)
    for name, hint in hints_of(kind).items():
        value = getattr(values, name)
        if wanted := broken_rule(hint, value):
            raise InputError(f"{place(name, value)} want {wanted}")
