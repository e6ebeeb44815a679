import sys
from pathlib import Path

import pytest

from _claims import options
from _common.entry_point import RecipeError


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str, full_needs: tuple[str, ...] = ()) -> options.Options:
    monkeypatch.setattr(sys, "argv", ["claim.py", *arguments])
    return options.parse("claim", "What it claims.", full_needs)


def test_quick_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    given = parsed(monkeypatch)
    assert (given.full, given.device, given.seeds, given.size) == (False, "cpu", 3, "quick")
    assert given.directory == Path("runs/papers/allocation/claim")
    assert given.jobs >= 1


def test_options_of_full_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ("data_dir", "model_name_or_path")
    given = parsed(monkeypatch, "--full", "--data_dir", "cifar", full_needs=needs)
    assert (given.data_dir, given.model_name_or_path, given.jobs) == ("cifar", "microsoft/resnet-18", 1)
    assert parsed(monkeypatch, full_needs=needs).model_name_or_path is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seeds", "2"], "--seeds must be at least 3, for a spread, got 2; give more"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--full"], "--full needs --data_dir"),
        (["--data_dir", "x"], "--data_dir goes with --full, got 'x' alone; add --full"),
        (["--device", "abacus"], "--device must be one of cpu.* on this machine, got 'abacus'"),
    ],
)
def test_what_cannot_be_meant(monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        parsed(monkeypatch, *arguments, full_needs=("data_dir",))


def test_processes_that_train_together_do_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parsed(monkeypatch).jobs == 1
    with pytest.raises(RecipeError, match="--jobs must be 1 where processes train together, got 2"):
        parsed(monkeypatch, "--jobs", "2")
