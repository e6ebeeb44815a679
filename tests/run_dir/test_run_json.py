"""`pdyn/run.json`: starts, the end, and no secrets."""

import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_pdyn.run_dir import run_json


def test_a_run_starts_and_finishes(tmp_path: Path) -> None:
    run_json.write_start(tmp_path, 0, {"max_steps": 12})
    found = run_json.read(tmp_path)
    assert found is not None and found["finished"] is None and len(found["starts"]) == 1
    assert found["starts"][0]["step"] == 0 and found["starts"][0]["max_steps"] == 12
    run_json.write_finish(tmp_path, 12)
    found = run_json.read(tmp_path)
    assert found is not None and found["finished"]["step"] == 12
    assert [path.name for path in run_json.path_of(tmp_path).parent.iterdir()] == ["run.json"]


def test_a_resume_is_one_more_start_and_unfinished(tmp_path: Path) -> None:
    run_json.write_start(tmp_path, 0, {"max_steps": 12})
    run_json.write_finish(tmp_path, 12)
    run_json.write_start(tmp_path, 12, {"max_steps": 20})
    found = run_json.read(tmp_path)
    assert found is not None and found["finished"] is None
    assert [(start["step"], start["max_steps"]) for start in found["starts"]] == [(0, 12), (12, 20)]


def test_every_run_has_an_id_of_its_own(tmp_path: Path) -> None:
    first = run_json.write_start(tmp_path, 0, {})
    assert run_json.write_start(tmp_path, 6, {}) == run_json.write_start(tmp_path, 7, {}, first) == first
    assert len((run_json.read(tmp_path) or {})["starts"]) == 3
    second = run_json.write_start(tmp_path, 0, {}, first)
    assert second != first
    assert run_json.write_start(tmp_path, 6, {}, first) == first
    assert [start["step"] for start in (run_json.read(tmp_path) or {})["starts"]] == [6]


def test_the_id_of_a_state() -> None:
    assert run_json.id_in({"stateful_callbacks": {"pdyn": {"version": 1, "run": "x"}}}) == "x"
    for odd in ({}, {"stateful_callbacks": []}, {"stateful_callbacks": {"pdyn": []}}):
        assert run_json.id_in(odd) is None
    for of_an_earlier_version in ({"version": 1}, {"version": 1, "run": None}, {"run": 3}):
        assert run_json.id_in({"stateful_callbacks": {"pdyn": of_an_earlier_version}}) is None


def test_a_new_run_replaces_the_one_before(tmp_path: Path) -> None:
    for most in (12, 20):
        run_json.write_start(tmp_path, 0, {"max_steps": most})
    found = run_json.read(tmp_path)
    assert found is not None and [start["max_steps"] for start in found["starts"]] == [20]


def test_a_resume_over_a_damaged_file_starts_a_new_one(tmp_path: Path) -> None:
    run_json.write_start(tmp_path, 0, {})
    run_json.path_of(tmp_path).write_text("{")
    run_json.write_start(tmp_path, 6, {})
    found = run_json.read(tmp_path)
    assert found is not None and [start["step"] for start in found["starts"]] == [6]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "no JSON"),
        ("[]", "no list of starts"),
        ('{"format": 1, "starts": []}', "no list of starts"),
        ('{"format": 1, "starts": [3]}', "no list of starts"),
        ('{"format": 7, "starts": [{}]}', "format 7"),
        ("[" * 100_000, "no JSON"),
        (f'{{"format": 1, "starts": [{{"model": {"[" * 300}{"]" * 300}}}]}}', "nested deeper than 50 levels"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: str, reason: str) -> None:
    run_json.path_of(tmp_path).parent.mkdir()
    run_json.path_of(tmp_path).write_text(content)
    with pytest.raises(ValueError, match=reason):
        run_json.read(tmp_path)


def test_nothing_written_is_nothing(tmp_path: Path) -> None:
    assert run_json.read(tmp_path) is None
    with pytest.raises(ValueError, match="is gone"):
        run_json.write_finish(tmp_path, 3)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_json.write_start(tmp_path, 0, {"max_steps": 12})

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("hf_pdyn.common.atomic.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        run_json.write_finish(tmp_path, 12)
    found = run_json.read(tmp_path)
    assert found is not None and found["finished"] is None
    assert [path.name for path in run_json.path_of(tmp_path).parent.iterdir()] == ["run.json"]


class Colour(str, enum.Enum):  # noqa: UP042  (as users write them)
    RED = "red"


@dataclass
class Config:
    p_min: float
    inner: Any


class Text:
    def __str__(self) -> str:
        return "text"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Config(0.25, (1, None)), {"p_min": 0.25, "inner": [1, None]}),
        ({"hub_token": "hf_x", "push": {"api_key": "x", "secret": None}}, None),
        (Text(), "text"),
        (math.inf, "inf"),
        ({3: True}, {"3": True}),
    ],
)
def test_plain(value: Any, plain: Any) -> None:
    expected = plain or {"hub_token": "(hidden)", "push": {"api_key": "(hidden)", "secret": None}}
    assert json.loads(json.dumps(run_json.as_json(value))) == expected


def test_names_that_only_sound_like_secrets_stay() -> None:
    settings = {"include_num_input_tokens_seen": "all", "average_tokens_across_devices": True, "eos_token_id": 3}
    assert run_json.as_json(settings) == settings
