"""An ensemble on any images: its members predict, and its recipe makes one set of detections of theirs."""

from collections.abc import Mapping
from typing import Any

from vbd import storage
from vbd.detections import read_detections
from vbd.ensemble.recipe import FILE, Recipe, make_again, read_recipe
from vbd.errors import InputError
from vbd.predict.outputs import Found
from vbd.predict.request import Request, name_checkpoints, write_predictions
from vbd.records import Detections, detections_to_table

NAME = "ensemble"


def ensemble_checkpoints(run: str) -> dict[str, str]:
    """Folders of the checkpoints that the recipe of a run needs, by the names of their tables; raises InputError."""
    recipe = read_recipe(run)
    named = name_checkpoints((), run)
    missing = next((name for name in recipe.members if not _tables_of(name, named)), None)
    if missing is not None:
        raise InputError(f"{storage.join(run, FILE)}: member {missing} is not kept any more; {make_again(run)}")
    return {table: named[table] for name in recipe.members for table in _tables_of(name, named)}


def _tables_of(member: str, named: Mapping[str, str]) -> list[str]:
    """The tables of a member's checkpoints: `<member>`, or `<member>-<place>` where there are several."""
    if member in named:
        return [member]
    several = [name for name in named if name.rpartition("-")[0] == member]
    return sorted(several, key=lambda name: int(name.rpartition("-")[2]))


def write_ensemble(run: str, request: Request, **options: Any) -> tuple[int, int]:
    """`write_predictions` of the members, and `ensemble.parquet` beside their tables; extras are of the ensemble alone.

    Other arguments are those of `write_predictions`, and so is what is returned.
    """
    recipe = read_recipe(run)

    def finish() -> Found:
        table = detections_to_table(_apply(recipe, request))
        storage.write_table(storage.join(request.output, f"{NAME}.parquet"), table)
        return Found(NAME, f"an ensemble of {', '.join(recipe.members)}", table)

    return write_predictions(request, finish=finish, **options)


def _apply(recipe: Recipe, request: Request) -> list[Detections]:
    found = {
        member: [
            read_detections(storage.join(request.output, f"{table}.parquet"))
            for table in _tables_of(member, request.checkpoints)
        ]
        for member in recipe.members
    }
    return recipe.apply(found)
