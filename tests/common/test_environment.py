"""Versions of packages, and the cache directory."""

from pathlib import Path

import pytest

from hf_pdyn.common.environment import cache_dir, installed_versions
from hf_pdyn.run_dir import run_json


def test_versions_of_installed_packages_only() -> None:
    assert list(installed_versions(["torch", "no-such-package", "hf-pdyn"])) == ["torch", "hf-pdyn"]
    assert {"hf-pdyn", "torch", "transformers"} <= installed_versions(run_json.LIBRARIES).keys()


def test_the_cache_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "hf_pdyn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "hf_pdyn"
