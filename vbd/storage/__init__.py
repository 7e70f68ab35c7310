"""Files and folders wherever they lie: a local disk, NFS or an object store, through `pyarrow.fs`.

The only place that opens paths. Other modules write `from vbd import storage` and `storage.join(...)`.
"""

from vbd.storage.files import copy_folder, in_threads, read_bytes, read_many, write_bytes, write_new
from vbd.storage.formats import read_csv, read_json, read_object, read_table, write_csv, write_json, write_table
from vbd.storage.paths import absolute, is_leftover, is_link, is_local, is_safe_id, join, shown
from vbd.storage.stores import (
    FileFacts,
    delete_file,
    exists,
    filesystem,
    is_folder,
    list_files,
    list_names,
    move_file,
    need_space,
    touch,
)
from vbd.storage.waiting import PATIENCE_SECONDS, patiently

__all__ = [
    "PATIENCE_SECONDS",
    "FileFacts",
    "absolute",
    "copy_folder",
    "delete_file",
    "exists",
    "filesystem",
    "in_threads",
    "is_folder",
    "is_leftover",
    "is_link",
    "is_local",
    "is_safe_id",
    "join",
    "list_files",
    "list_names",
    "move_file",
    "need_space",
    "patiently",
    "read_bytes",
    "read_csv",
    "read_json",
    "read_many",
    "read_object",
    "read_table",
    "shown",
    "touch",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_new",
    "write_table",
]
