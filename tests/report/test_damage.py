"""Run directories whose files were cut off or changed: a report or one clear line, never a traceback."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_pdyn.report.page import page
from hf_pdyn.report.reading import read_runs
from tests.report.runs import make_run

pytest.importorskip("vl_convert")
pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", records=4, samples=6, layers=("h.0", "h.1"))


def report_on(run: Path, damage: Callable[[bytes], bytes], which: int) -> None:
    """Damage one file of a copy of `run` and make a report on it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(run, Path(folder) / "run"))
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        file = files[which % len(files)]
        file.write_bytes(damage(file.read_bytes()))
        assert not any("\n" in line for line in reported(copy))


def reported(run: Path) -> tuple[str, ...]:
    """What is said of a run: the problems on its page, or why there is none."""
    try:
        runs = read_runs([run])
    except ValueError as error:
        return (str(error),)
    assert page(runs).encode()
    return runs[0].problems


@settings(max_examples=40)
@given(which=st.integers(0, 5), share=st.floats(0, 1))
def test_a_file_that_is_cut_off(whole: Path, which: int, share: float) -> None:
    report_on(whole, lambda content: content[: int(share * len(content))], which)


@settings(max_examples=80)
@given(which=st.integers(0, 5), seed=st.integers(0, 2**32), flips=st.sampled_from([1, 3, 30]))
def test_a_file_with_flipped_bits(whole: Path, which: int, seed: int, flips: int) -> None:
    def flipped(content: bytes) -> bytes:
        changed, rng = bytearray(content), random.Random(seed)
        for _ in range(flips):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    report_on(whole, flipped, which)
