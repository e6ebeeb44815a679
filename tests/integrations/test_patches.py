import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer

import hf_pdyn
from hf_pdyn.callbacks import TelemetryCallback
from hf_pdyn.integrations import patches, patching
from hf_pdyn.integrations.patching import Patch
from tests.integrations.patches_table import BEGIN, DOCUMENT, END, render
from tests.training import trainer

PACKAGE = Path(hf_pdyn.__file__).parent


@pytest.mark.parametrize("patch", patches.PATCHES, ids=lambda patch: patch.target)
def test_every_target_exists_in_this_version(patch: Patch) -> None:
    if "deepspeed" in patch.target:  # accelerate has its target only beside DeepSpeed
        pytest.importorskip("deepspeed")
    assert (patch.find() is not None) == patch.is_expected


def test_every_patch_is_listed_used_and_documented() -> None:
    named = {name: patch for name, patch in vars(patches).items() if isinstance(patch, Patch)}
    assert list(named.values()) == list(patches.PATCHES)
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for name in named:
        assert f"patches.{name}" in code, f"{name} is used nowhere"
    documented = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    assert documented.strip() == render(), "python -m tests.integrations.patches_table"


def patch_of(name: str, required: bool = False, since: str | None = None) -> Patch:
    target = f"{__name__}:library.{name}"
    return Patch(target, tried="1.0 to 2.0", when="never", lost="Everything is lost.", required=required, since=since)


library = SimpleNamespace(there=lambda number: number + 1)


@pytest.fixture
def a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "_installed", lambda _: "3.0")
    monkeypatch.setattr(library, "there", lambda number: number + 1)


def doubling(original: Any) -> Any:
    return lambda number: 2 * original(number)


@pytest.mark.usefixtures("a_library")
def test_a_target_is_replaced_once() -> None:
    for _ in range(2):
        patch_of("there").replace(doubling)
    assert library.there(1) == 4


@pytest.mark.usefixtures("a_library")
def test_a_missing_required_target_is_an_error_that_says_what_is_lost() -> None:
    with pytest.raises(RuntimeError, match=r"tests 3.0 has no .*:library.gone.*tried with tests 1.0 to 2.0.*is lost"):
        patch_of("gone", required=True).replace(doubling)
    with pytest.raises(RuntimeError, match="has no"):
        patch_of("gone.further", required=True).replace(doubling)


@pytest.mark.usefixtures("a_library")
def test_a_missing_optional_target_is_one_warning() -> None:
    with pytest.warns(UserWarning, match="Everything is lost"):
        patch_of("gone_too").replace(doubling)
    patch_of("gone_too").replace(doubling)  # a warning would be an error


@pytest.mark.usefixtures("a_library")
def test_an_older_version_without_the_target_loses_nothing() -> None:
    patch_of("not_yet", required=True, since="3.1").replace(doubling)


@pytest.mark.parametrize("name", ["_save_checkpoint", "_save_rng_state"])
def test_checkpoints_without_our_state_are_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(Trainer, name)
    run = trainer(tmp_path, callbacks=[TelemetryCallback()], optim="sgd")
    with pytest.raises(RuntimeError, match=f"has no transformers.trainer:Trainer.{name}"):
        run.train()
    assert run.state.global_step == 0


class OwnCheckpoints(Trainer):
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Path(self.args.output_dir, f"checkpoint-{self.state.global_step}").mkdir(parents=True)


def test_a_trainer_that_saves_without_us_is_told_once(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        callbacks=[TelemetryCallback()],
        trainer_class=OwnCheckpoints,
        save_strategy="steps",
        save_steps=2,
        max_steps=4,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    (said,) = [str(one.message) for one in caught if "written without" in str(one.message)]
    assert "checkpoint of step 2 has no telemetry state" in said
