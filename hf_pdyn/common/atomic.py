"""Files that are whole, or as they were before; and what else may stand under a file's name."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: unfinished files are not locked, and sweep leaves them
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` unless an error is raised.

    The folder is made. The name of the yielded file begins with a dot, which readers of a folder pass over.

    Raises:
        OSError: if `path` is a directory, link, device, FIFO or socket, which renaming would destroy.
    """
    kind = irregularity(path, follow_links=False)
    if kind is not None:
        raise OSError(f"it is {kind}, and only a regular file is replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name[:100]}.{os.getpid()}")
    try:
        with _locked(unfinished):
            yield unfinished
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def sweep(folder: Path, suffix: str) -> None:
    """Remove the unfinished files of killed processes for names that end in `suffix`.

    Those of live writers are locked, and stay.
    """
    left = re.compile(rf"\..*{re.escape(suffix)}\.\d+")
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if left.fullmatch(path.name) and irregularity(path, follow_links=False) is None and not _is_locked(path):
                with suppress(OSError):
                    path.unlink()


def irregularity(path: Path, *, follow_links: bool = True) -> str | None:
    """Return what `path` is, such as "a FIFO"; None for a regular file and for nothing at all."""
    try:
        mode = os.stat(path, follow_symlinks=follow_links).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_regular(path: Path) -> str:
    """Return the UTF-8 text of a file or of what a link leads to; OSError for a FIFO or a device, which may not end."""
    kind = irregularity(path)
    if kind is not None:
        raise OSError(f"it is {kind}, no regular file")
    return path.read_text(encoding="utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a new file, which its process loses with its life, unlike a process id, which may come again."""
    with path.open("wb") as file:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_locked(path: Path) -> bool:
    """Whether a live process may hold the lock: also where this cannot be told."""
    if fcntl is None:
        return True
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
