"""What is found so far, part by part, in the output folder: a run that is killed goes on with what is missing.

`predictions.json` says what is predicted by which checkpoints. Each part is one Parquet file whose name holds a hash of that
and of its images, so that whatever lies there under this name is what would be found again. When all parts are there, they
become one table for each checkpoint, and go.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from vbd import storage
from vbd.config import checked
from vbd.config.checked import Count, Rule, SafeName
from vbd.config.difference import first_difference
from vbd.data.rejects import REJECT_COLUMNS, Reject
from vbd.errors import InputError
from vbd.predict.images import Item
from vbd.predict.stages import FoundPart
from vbd.storage import deletion
from vbd.storage.outputs import PREDICTIONS

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1
_PARTS, _REJECTS = "parts", b"rejects"
_PART_NAME = re.compile(r"part-[0-9]{5,}-[0-9a-f]{16}\.parquet")
# Facts of an image that are no reason to look at it again: the folder may have been moved.
_NO_FACTS = ("path",)


def _are_counts(values: Mapping[str, int]) -> bool:
    return set(values) == {"images", "rejects"}


@dataclass(frozen=True)
class _File:
    """What `Output` needs of `predictions.json`."""

    checkpoints: dict[SafeName, Any] = field(default_factory=dict)
    images: str = ""
    counts: Annotated[dict[str, Count], Rule("the numbers images and rejects", _are_counts)] | None = None


class Output:
    """A folder of predictions, finished or not."""

    def __init__(
        self,
        folder: str,
        description: Mapping[str, Any],
        parts: Sequence[Sequence[Item]],
        *,
        names: Sequence[str],
        overwrite: bool = False,
    ):
        """`description` says what is predicted by which `checkpoints`, as JSON.

        Raises InputError when the folder holds other predictions.
        """
        self.folder, self.names = folder, tuple(names)
        self.description = {"schema": SCHEMA, **json.loads(json.dumps(description))}
        self._files = {number: self._name(number, items) for number, items in enumerate(parts)}
        self._digest = _hash(sorted(self._files.values()))
        before, known = self._read()
        told = {name: before.get(name) for name in self.description}
        self._older = {f"{name}.parquet" for name in known.checkpoints}
        if before and told != self.description and not overwrite:
            raise InputError(
                f"{folder}: holds other predictions ({first_difference(told, self.description)}); "
                "choose another --output, or --overwrite them"
            )
        self.is_finished = not overwrite and known.images == self._digest and known.counts is not None
        self.counts: dict[str, int] = (known.counts or {}) if self.is_finished else {}

    def _name(self, number: int, items: Sequence[Item]) -> str:
        facts = [{name: value for name, value in item.items() if name not in _NO_FACTS} for item in items]
        return f"part-{number:05d}-{_hash([self.description, facts])}.parquet"

    def _read(self) -> tuple[dict[str, Any], "_File"]:
        location = storage.join(self.folder, PREDICTIONS)
        if not storage.exists(location):
            return {}, _File()
        return storage.read_object(location), checked.read(location, _File, again="choose another --output")

    def begin(self) -> list[int]:
        """Says what is coming, and removes what is not of it; returns the numbers of the parts that are missing."""
        deletion.remove_leftovers(self.folder)
        storage.write_json(storage.join(self.folder, PREDICTIONS), self.description)
        for name in sorted(self._older):
            storage.delete_file(storage.join(self.folder, name))
        here = set(storage.list_files(storage.join(self.folder, _PARTS)))
        deletion.keep_only(storage.join(self.folder, _PARTS), set(self._files.values()), _PART_NAME.fullmatch)
        known = [number for number, name in self._files.items() if name in here]
        whole = storage.in_threads(_is_readable, [self._place(number) for number in known])
        done = {number for number, is_whole in zip(known, whole, strict=True) if is_whole}
        return [number for number in self._files if number not in done]

    def write(self, found: FoundPart) -> None:
        """Keeps what was found in a part."""
        import pyarrow as pa

        columns = [
            table.append_column("checkpoint", pa.array([which] * len(table), pa.int64()))
            for which, table in enumerate(found.tables)
        ]
        table = pa.concat_tables(columns).replace_schema_metadata({_REJECTS: json.dumps(found.rejects)})
        place = self._place(found.number)
        # A disk that is full is waited for too.
        storage.patiently(lambda: storage.write_table(place, table), seconds=storage.PATIENCE_SECONDS, say=print)

    def finish(self, say: Callable[[str], None]) -> None:
        """Makes one table for each checkpoint of all parts, and `rejects.csv`; then the parts go."""
        import pyarrow as pa
        import pyarrow.compute as pc

        tables = storage.in_threads(storage.read_table, [self._place(number) for number in sorted(self._files)])
        rejects: list[Reject] = [row for table in tables for row in json.loads(table.schema.metadata[_REJECTS])]
        whole = pa.concat_tables(table.replace_schema_metadata() for table in tables)
        for which, name in enumerate(self.names):
            mine = whole.filter(pc.equal(whole["checkpoint"], which)).drop_columns("checkpoint")
            storage.write_table(self.table(name), mine)
            say(f"{self.table(name)}: detections of {len(mine)} images")
        storage.write_csv(storage.join(self.folder, "rejects.csv"), rejects, REJECT_COLUMNS)
        self.counts = {"images": len(whole) // len(self.names), "rejects": len(rejects)}
        storage.write_json(
            storage.join(self.folder, PREDICTIONS),
            self.description | {"images": self._digest, "counts": self.counts},
        )
        deletion.delete_folder(storage.join(self.folder, _PARTS), _PART_NAME.fullmatch)
        self.is_finished = True

    def read(self, name: str) -> "pa.Table":
        """A checkpoint's detections, by image id."""
        return storage.read_table(self.table(name))

    def table(self, name: str) -> str:
        """Where a checkpoint's detections lie."""
        return storage.join(self.folder, f"{name}.parquet")

    def _place(self, number: int) -> str:
        return storage.join(self.folder, _PARTS, self._files[number])


def _is_readable(location: str) -> bool:
    """A machine that loses its power may leave a file without its content."""
    try:
        storage.read_table(location, ["image_id"])
    except InputError:
        return False
    return True


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
