from pathlib import Path

import pytest

from _common.entry_point import RecipeError
from papers._claims import options

FOLDER = options.Option("folder", "images, a folder for each class")
EPOCHS = options.Option("epochs", "passes over the train set", int, quick=2, full=200)


def parsed(*arguments: str, own: tuple[options.Option, ...] = ()) -> options.Options:
    return options.parse("paper", "claim", "What it claims.", own, arguments)


def test_quick_is_the_default() -> None:
    given = parsed()
    assert (given.full, given.device, given.seeds, given.size) == (False, "cpu", 3, "quick")
    assert given.directory == Path("runs/papers/paper/claim")
    assert given.jobs >= 1


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ([], (None, 2)),
        (["--epochs", "3"], (None, 3)),
        (["--full", "--folder", "faces"], ("faces", 200)),
        (["--full", "--folder", "faces", "--epochs", "3"], ("faces", 3)),
    ],
)
def test_a_claim_has_options_of_its_own(arguments: list[str], values: tuple[str | None, int]) -> None:
    given = parsed(*arguments, own=(FOLDER, EPOCHS))
    assert (given["folder"], given["epochs"]) == values
    assert hash(given) == hash(parsed(*arguments, own=(FOLDER, EPOCHS)))  # claims cache what they load for it


def test_full_runs_are_one_at_a_time() -> None:
    assert parsed("--full").jobs == 1


def test_help_says_which_options_are_of_full_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help", own=(FOLDER, EPOCHS))
    told = " ".join(capsys.readouterr().out.split())
    assert "--folder FOLDER with --full: images, a folder for each class" in told
    assert "--epochs EPOCHS passes over the train set (default: quick 2, full 200)" in told


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seeds", "2"], "--seeds must be at least 3, for a spread, got 2; give more"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--full"], "--full needs --folder, images, a folder for each class, got none"),
        (["--folder", "x"], "--folder goes with --full, got 'x' alone; add --full"),
        (["--device", "abacus"], "--device must be one of cpu.* on this machine, got 'abacus'"),
    ],
)
def test_what_cannot_be_meant(arguments: list[str], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        parsed(*arguments, own=(FOLDER, EPOCHS))


def test_processes_that_train_together_do_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parsed().jobs == 1
    with pytest.raises(RecipeError, match="--jobs.*1.*got 2"):
        parsed("--jobs", "2")
