"""What the tests of sources share: small files, and what a source says in short."""

import cv2
import numpy as np

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
NORMAL = [f"b,No finding,14,R{rad},,,," for rad in (1, 2, 3)]
ROWS = [
    "a,Cardiomegaly,3,R8,10,20,30.5,40",
    "a,Nodule/Mass,8,R09,1,2,3,4",
    "a,Cardiomegaly,3,R10,11,20,31,40",
    *NORMAL,
]


def png(height=60, width=50):
    return cv2.imencode(".png", np.zeros((height, width), np.uint8))[1].tobytes()


def put(folder, **files):
    """Writes files below a folder by their paths, texts or bytes; returns the folder as text."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def refused(source):
    """Base name, row and reason of every reject."""
    return [(entry["file"].rsplit("/", 1)[-1], entry["row"], entry["reason"]) for entry in source.rejects]


def ids(source, split="train"):
    return sorted(source.images.loc[source.images["split"] == split, "image_id"])
