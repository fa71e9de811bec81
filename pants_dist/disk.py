"""Files that appear whole or not at all; and whether a disk is on the network."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "fuse.ceph", "cifs", "smb3", "9p", "afs", "wekafs",
    "panfs", "orangefs", "pvfs2", "fuse.sshfs", "fuse.glusterfs", "glusterfs", "quobyte",
}  # fmt: skip
MOUNTS = Path("/proc/self/mounts")


@contextlib.contextmanager
def replacing(path: Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once the block ends well, and leaves no trace where it does not.

    It lies in the same folder until then (a rename across quota projects fails) as `file.name`, and every write, fsync
    and close is checked: a quota error may come late. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", buffering) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside the folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def on_network(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a path lies on a file system of other machines, by the type of the mount that it is below."""
    whole, kinds = path.resolve(), dict[Path, str]()
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, place, kind, *_ = line.split(" ")
        kinds[Path(place.replace("\\040", " "))] = kind
    above = next((place for place in (whole, *whole.parents) if place in kinds), None)
    return above is not None and kinds[above] in NETWORK
