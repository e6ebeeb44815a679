"""Workers of pytest-xdist collect one by one: they must find the same tests at any time and under any hash seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MARKS, TESTS

ROOT = Path(__file__).parents[1]


def collected_twice(*paths: str) -> tuple[list[str], list[str]]:
    """The ids of the tests, collected now and, under another hash seed, tomorrow."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *paths]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    collections = [
        subprocess.Popen(
            [*command, *plugins], cwd=ROOT, env=environment | {"PYTHONHASHSEED": seed, "TZ": zone}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for plugins, seed, zone in (([], "1", "UTC"), (["-p", "tests.tomorrow"], "2", "UTC-13"))
    ]  # fmt: skip
    found = []
    for collection in collections:
        output, _ = collection.communicate(timeout=300)
        assert collection.returncode == 0, output[-3000:]
        found.append([line for line in output.splitlines() if "::" in line])
    return found[0], found[1]


def test_a_collection_is_the_same_on_another_day_and_with_another_hash_seed() -> None:
    today, tomorrow = collected_twice()
    assert len(today) > 1000
    assert today == tomorrow, "a parameter is random, dated or in a set's order: give it an id, and make it in the test"


PLANTED = """
import time, uuid
import pytest

@pytest.mark.parametrize("x", [str(time.time() // 3600)])
def test_time(x): ...

@pytest.mark.parametrize("x", [time.strftime("%F %H")])
def test_hour(x): ...

@pytest.mark.parametrize("x", [*set("abcdefgh")])
def test_set(x): ...

@pytest.mark.parametrize("x", [str(uuid.uuid4())])
def test_random(x): ...
"""


def test_what_would_differ_is_seen(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    today, tomorrow = collected_twice(str(tmp_path))
    for name in ("time", "hour", "set", "random"):
        before, after = ([one for one in ids if f"test_{name}[" in one] for ids in (today, tomorrow))
        assert len(before) == len(after) > 0 and before != after, name


def test_the_content_of_bytes_is_no_id(request: pytest.FixtureRequest) -> None:
    make_id = request.config.hook.pytest_make_parametrize_id
    assert make_id(config=request.config, val=b"\x1f\x8b", argname="content") == "content"


@pytest.mark.parametrize("place", sorted({place for places in MARKS.values() for place in places}))
def test_a_mark_finds_its_tests(place: str) -> None:
    path, _, name = place.partition("::")
    found = TESTS / path
    assert found.exists()
    assert f"def {name}(" in found.read_text() if name else True
