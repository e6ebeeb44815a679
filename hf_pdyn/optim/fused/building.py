"""C++ for CPUs: built by torch's extension loader at the first use on a machine, and kept."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hf_pdyn.common.environment import cache_dir

NEEDS = "a C++ compiler with OpenMP, ninja (pip install ninja) and a cache directory that can be written"

_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
# By what torch found the CPU to have, not -march=native: nodes of a cluster share a cache, and torch's own kernels
# are chosen so. GCC prefers 256-bit vectors on most CPUs with 512-bit ones; here these are a tenth faster.
_VECTORS: dict[str, tuple[str, ...]] = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
_HEADERS = sorted(Path(__file__).parent.glob("*.h"))
"""What the sources may include."""


def why_not_here() -> str | None:
    """Why nothing can be built for this machine's CPU, as far as can be told without a compiler."""
    if sys.platform != "linux":
        return f"on CPUs it is built on Linux only, this is {sys.platform}"
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() == "x86_64" and capability not in _VECTORS:
        return f"on x86 it needs {' or '.join(_VECTORS)}, torch found {capability}"
    return None


def cached_library(source: Path) -> Path:
    """Where `source` is kept once it is compiled: with torch's extensions, or under the user's cache directory.

    The name tells the source, the flags and torch's version, so one directory serves different machines.
    """
    texts = [file.read_bytes() for file in (source, *_HEADERS)]
    key = hashlib.sha256(repr((texts, _flags(), torch.__version__)).encode()).hexdigest()[:16]
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = Path(extensions).expanduser() / "hf_pdyn" if extensions else cache_dir()
    return folder / f"{source.stem}_{key}.so"


def build(source: Path) -> Path:
    """The path of the compiled library, which is there afterwards. Whatever keeps it from that is raised as it comes.

    It is compiled in a directory of this process and then renamed: torch's loader leaves a lock behind where it
    is killed (2.13), and the next process would wait for ever.
    """
    target = cached_library(source)
    if not target.exists():
        # It imports setuptools, which costs more than loading what is compiled already.
        from torch.utils import cpp_extension

        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder, _scripts_on_path():
            built = cpp_extension.load(
                f"hf_pdyn_{source.stem}",
                [str(source)],
                extra_cflags=list(_flags()),
                extra_ldflags=["-fopenmp"],
                build_directory=folder,
                is_python_module=False,
            )
            os.replace(built, target)
    return target


def essence(error: Exception) -> str:
    """What went wrong, of a text that begins with the whole command line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for line in lines if re.search("error:|not found|no such|denied|no space", line, re.IGNORECASE)]
    return " ".join(" ".join((telling or lines[-2:])[:2]).split())[:300]


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()))


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """For ninja, which torch's loader calls: pip puts it beside python, which need not be on the PATH."""
    before = os.environ.get("PATH", "")
    own = str(Path(sys.executable).parent) if sys.executable else ""
    os.environ["PATH"] = os.pathsep.join(filter(None, [before, own]))
    try:
        yield
    finally:
        os.environ["PATH"] = before
