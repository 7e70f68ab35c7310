"""The manifest of kept checkpoints: what a search or a training over folds hands to the ensemble."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from vbd import storage
from vbd.config import checked
from vbd.config.checked import PathBelow, Rule, SafeName, Score
from vbd.data.prepared import PreparedDataset
from vbd.detections import read_detections
from vbd.errors import InputError
from vbd.records import Detections
from vbd.storage import deletion

SCHEMA = 1
# Names the members in a folder; written last.
MANIFEST = "manifest.json"
# A checkpoint's detections on its validation fold, which it never trained on; lies in the checkpoint's folder.
OUT_OF_FOLD = "out_of_fold.parquet"
# The files of a checkpoint's folder.
CHECKPOINT_FILES = ("config.json", "model.pt", "state.pt", OUT_OF_FOLD)


@dataclass(frozen=True)
class Member:
    """One configuration of the ensemble: a checkpoint, or one checkpoint for each fold."""

    name: SafeName  # <family>-<rank>
    trial_id: SafeName
    score: Score  # on the validation fold
    folders: Annotated[tuple[PathBelow, ...], Rule("at least one folder", len)]  # checkpoints

    def out_of_fold(self) -> list[Detections]:
        """What its checkpoints found on the images they never trained on, by image id."""
        runs = [read_detections(storage.join(folder, OUT_OF_FOLD)) for folder in self.folders]
        return sorted((found for run in runs for found in run), key=lambda found: found.image_id)


def _are_different(members: Sequence[Member]) -> bool:
    return 0 < len(members) == len({member.name for member in members})


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds; the folders of its members are names below its own."""

    dataset: str  # fingerprint
    members: Annotated[tuple[Member, ...], Rule("members of different names, at least one", _are_different)]


def write_members(folder: str, members: Sequence[Member], dataset_fingerprint: str, *, synthetic: bool) -> None:
    """`manifest.json` of a folder whose subfolders are the checkpoints; it can be moved, its paths are relative."""
    prefix = folder.rstrip("/") + "/"
    content = {
        "schema": SCHEMA,
        "dataset": dataset_fingerprint,
        "synthetic": synthetic,
        "members": [
            asdict(member) | {"folders": [path.removeprefix(prefix) for path in member.folders]} for member in members
        ],
    }
    storage.write_json(storage.join(folder, MANIFEST), content)


def delete_checkpoint(folder: str) -> None:
    """Deletes a checkpoint; a file in its folder that is not of a checkpoint stays there."""
    deletion.delete_folder(folder, CHECKPOINT_FILES.__contains__)


def members_folder(run: str) -> str:
    """Where a run keeps its members: `best/` of a search, or the output of a training itself."""
    best = storage.join(run, "best")
    return best if storage.exists(storage.join(best, MANIFEST)) else run


def read_manifest(folder: str) -> Manifest:
    """The manifest in a folder, with the folders of its members as they are; raises InputError when there is none."""
    location = storage.join(folder, MANIFEST)
    if not storage.exists(location):
        raise InputError(
            f"{folder}: no manifest.json; a search (jobs/tune.py) or training (jobs/train.py) writes it at its end"
        )
    found = checked.read(location, Manifest, schema=SCHEMA, again="run the search again")
    members = (
        replace(member, folders=tuple(storage.join(folder, name) for name in member.folders))
        for member in found.members
    )
    return replace(found, members=tuple(members))


def read_members(folder: str, dataset: PreparedDataset) -> list[Member]:
    """The members in a folder; raises InputError when there are none, or when they come from another dataset."""
    found = read_manifest(folder)
    if found.dataset != dataset.fingerprint:
        raise InputError(
            f"{storage.join(folder, MANIFEST)}: trained on dataset {found.dataset}, but {dataset.location} is "
            f"{dataset.fingerprint}; give --data the dataset of this run"
        )
    return list(found.members)
