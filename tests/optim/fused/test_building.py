"""What is compiled for a CPU, kept, and found again."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hf_pdyn.measure import power_kernel
from hf_pdyn.optim.fused import building, cpu

SOURCES = [cpu._SOURCE, power_kernel._SOURCE]
"""Everything that is compiled."""


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_what_is_compiled_is_used_without_a_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = building.build(source)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("PATH", "")
    assert building.cached_library(source) == built
    assert building.build(source) == built
    ctypes.CDLL(str(built))


def test_sources_are_kept_apart() -> None:
    assert len({building.cached_library(source) for source in SOURCES}) == len(SOURCES)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_sources_compile_where_there_are_no_vectors_of_ours(source: Path, tmp_path: Path) -> None:
    """As on CPUs that are not x86, where the plain loops are all there is."""
    flags = [flag for flag in building._FLAGS if flag != "-O3"]
    command = [
        os.environ.get("CXX", "c++"),
        "-O0",
        *flags,
        "-shared",
        "-fPIC",
        str(source),
        "-o",
        str(tmp_path / "x.so"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_changed_header_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = [shutil.copy(header, tmp_path) for header in building._HEADERS]
    assert {Path(header).name for header in headers} >= {"powers.h", "lanes.h", "codes.h", "bfloat16.h"}
    before = building.cached_library(cpu._SOURCE)
    monkeypatch.setattr(building, "_HEADERS", list(map(Path, headers)))
    assert building.cached_library(cpu._SOURCE) == before
    with Path(headers[-1]).open("a") as header:
        header.write("// changed")
    assert building.cached_library(cpu._SOURCE) != before


def test_a_build_needs_nothing_that_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its directory, nor the lock of torch's loader in there, for which that would wait for ever."""
    killed = tmp_path / "hf_pdyn" / "tmpkilled"
    killed.mkdir(parents=True)
    (killed / "lock").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    loaded = cpu.library.__wrapped__()
    assert loaded.hf_pdyn_chunk() > 0
    kept = building.cached_library(cpu._SOURCE).name
    assert {path.name for path in (tmp_path / "hf_pdyn").iterdir()} == {"tmpkilled", kept}
    shutil.rmtree(killed)


def test_what_went_wrong_is_told_without_the_command_line() -> None:
    text = "Error building extension 'x': [1/2] c++ -MMD -I/a -I/b\n/bin/sh: 1: c++: not found\nninja: build stopped"
    assert building.essence(RuntimeError(text)) == "/bin/sh: 1: c++: not found"
    assert building.essence(RuntimeError()) == "RuntimeError"
