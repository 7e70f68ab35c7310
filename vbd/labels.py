"""The classes of the VinBigData competition."""

from vbd.errors import InputError

CLASS_NAMES: tuple[str, ...] = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
)
NUM_FINDINGS = len(CLASS_NAMES)

# "No finding" is a statement about the whole image. It is class 14 in the competition's files only:
# inside vbd labels are 0..13 and a normal image has no boxes.
NO_FINDING = 14
NO_FINDING_NAME = "No finding"
NO_FINDING_BOX = (0.0, 0.0, 1.0, 1.0)

# Atelectasis and Pneumothorax: the rare labels that augmentation policy D multiplies.
RARE_LABELS: tuple[int, ...] = (1, 12)

_LABEL_OF_NAME = {name.casefold(): label for label, name in enumerate((*CLASS_NAMES, NO_FINDING_NAME))}


def label_of(name: str) -> int:
    """Class id 0..14 of a class name, whatever its case; raises InputError for an unknown name."""
    label = _LABEL_OF_NAME.get(name.strip().casefold())
    if label is None:
        raise InputError(f"unknown class {name!r}; the classes are {', '.join(CLASS_NAMES)} and {NO_FINDING_NAME}")
    return label


def name_of(label: int) -> str:
    """Class name of a class id 0..14."""
    return NO_FINDING_NAME if label == NO_FINDING else CLASS_NAMES[label]
