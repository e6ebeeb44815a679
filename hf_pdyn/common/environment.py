"""What this machine has: versions of packages, and a directory for what is built once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed, in the order of `packages`."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/hf_pdyn`, by default `~/.cache/hf_pdyn`; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf_pdyn"
