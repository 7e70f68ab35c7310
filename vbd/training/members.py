"""The manifest of kept checkpoints: what a search or a training over folds hands to the ensemble."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vbd import deletion, storage
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.records import Detections, detections_from_table

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

    name: str  # <family>-<rank>
    trial_id: str
    score: float  # on the validation fold
    folders: tuple[str, ...]  # checkpoints

    def out_of_fold(self) -> list[Detections]:
        """What its checkpoints found on the images they never trained on, by image id."""
        tables = [storage.read_table(storage.join(folder, OUT_OF_FOLD)) for folder in self.folders]
        return sorted((d for table in tables for d in detections_from_table(table)), key=lambda d: d.image_id)


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


def read_members(folder: str, dataset: PreparedDataset) -> list[Member]:
    """The members in a folder; raises InputError when there are none, or when they come from another dataset."""
    location = storage.join(folder, MANIFEST)
    if not storage.exists(location):
        raise InputError(
            f"{folder}: no manifest.json; a search (jobs/tune.py) or training (jobs/train.py) writes it at its end"
        )
    content = storage.read_object(location)
    if content.get("schema") != SCHEMA or not content.get("members"):
        raise InputError(f"{location}: schema {content.get('schema')!r} or no members; run the search again")
    if content.get("dataset") != dataset.fingerprint:
        raise InputError(
            f"{location}: trained on dataset {content.get('dataset')}, but {dataset.location} is {dataset.fingerprint}; "
            "give --data the dataset of this run"
        )
    try:
        return [
            Member(m["name"], m["trial_id"], m["score"], tuple(storage.join(folder, name) for name in m["folders"]))
            for m in content["members"]
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{location}: field {error} is missing or wrong; run the search again") from None
