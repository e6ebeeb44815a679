from pathlib import Path

import pytest

from _common.entry_point import RecipeError
from papers._claims import options


def parsed(*arguments: str, full_needs: tuple[str, ...] = ()) -> options.Options:
    return options.parse("claim", "What it claims.", full_needs, arguments)


def test_quick_is_the_default() -> None:
    given = parsed()
    assert (given.full, given.device, given.seeds, given.size) == (False, "cpu", 3, "quick")
    assert given.directory == Path("runs/papers/allocation/claim")
    assert given.jobs >= 1


def test_options_of_full_runs() -> None:
    needs = ("data_dir", "model_name_or_path")
    given = parsed("--full", "--data_dir", "cifar", full_needs=needs)
    assert (given.data_dir, given.model_name_or_path, given.jobs) == ("cifar", "microsoft/resnet-18", 1)
    assert parsed(full_needs=needs).model_name_or_path is None


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
def test_what_cannot_be_meant(arguments: list[str], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        parsed(*arguments, full_needs=("data_dir",))


def test_processes_that_train_together_do_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parsed().jobs == 1
    with pytest.raises(RecipeError, match="--jobs.*1.*got 2"):
        parsed("--jobs", "2")
