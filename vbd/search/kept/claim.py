"""`run.json`, which says what search a run folder belongs to."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from vbd import storage
from vbd.config import SearchConfig, checked
from vbd.config.difference import first_difference
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.storage.ownership import others

_AGAIN = "run the search again under another --name"


@dataclass(frozen=True)
class _Search:
    preset: str


@dataclass(frozen=True)
class Claim:
    """What other programs need of `run.json`."""

    search: _Search
    dataset: str  # fingerprint
    data: str = ""  # where the dataset lay

    @property
    def preset(self) -> str:
        """The preset that the search started from."""
        return self.search.preset


def read_claim(run: str) -> Claim | None:
    """What `run.json` of a folder says; None when there is none."""
    location = storage.join(run, "run.json")
    return checked.read(location, Claim, again=_AGAIN) if storage.exists(location) else None


def claim_of(search: SearchConfig, dataset: PreparedDataset) -> dict[str, Any]:
    """What `run.json` says of a search on a dataset, as JSON reads it."""
    return {"search": json.loads(json.dumps(dataclasses.asdict(search))), "dataset": dataset.fingerprint}


def check_run_folder(run: str, mine: dict[str, Any], *, extend: bool) -> bool:
    """Whether `run.json` is to be written: a run folder belongs to one search on one dataset.

    Raises InputError for the folder of another search, unless it may be extended.
    """
    location = storage.join(run, "run.json")
    found = read_claim(run)
    if found is None:
        if others(storage.list_names(run)):
            raise InputError(f"{run}: the folder is not empty and holds no run; choose another --name")
        return True
    theirs = storage.read_object(location)
    is_mine = all(theirs.get(name) == value for name, value in mine.items())
    if is_mine or extend:
        return not is_mine
    way_out = "choose another --name, or --extend this run by what is new"
    if found.dataset != mine["dataset"]:
        raise InputError(
            f"{run}: a search on dataset {found.dataset}, not {mine['dataset']}; {way_out} (its trials stay as they are, and "
            "all are trained on the new dataset)"
        )
    raise InputError(f"{run}: another search ({first_difference(theirs['search'], mine['search'])}); {way_out}")
