"""The plugin for ms-swift: against a stand-in of what it needs of 4.6, and in ms-swift where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import Trainer

from hf_pdyn.measure.sample_loss import read_epoch
from tests.training import arguments, gpt2, token_blocks

PLUGIN = "hf_pdyn.frontend.ms_swift"


class OptimizerCallback:
    """ms-swift 4.6's, as far as it is used."""

    def __init__(self, args: Any, trainer: Any) -> None:
        self.args, self.trainer = args, trainer

    def create_optimizer(self, model: Any = None) -> Any:
        kwargs = {} if model is None else {"model": model}
        return Trainer.create_optimizer(self.trainer, **kwargs)


class SwiftTrainer(Trainer):
    """Builds callbacks and optimizer as ms-swift 4.6's does, in the order of its `__init__`."""

    def __init__(self, model: Any, args: Any, swift: Any, **options: Any) -> None:
        self.optimizer_callback = swift.optimizers.optimizers_map[args.optimizer or "default"](args, self)
        callbacks = [swift.callbacks.callbacks_map[name](args, self) for name in args.callbacks]
        super().__init__(model=model, args=args, callbacks=callbacks, **options)

    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = self.optimizer_callback.create_optimizer(model=model)
        return self.optimizer


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = ("swift", "swift.callbacks", "swift.optimizers")
    made = [ModuleType(name) for name in names]
    for name, module in zip(names, made, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    swift, callbacks, optimizers = made
    vars(callbacks)["callbacks_map"] = {}
    vars(optimizers).update(OptimizerCallback=OptimizerCallback, optimizers_map={"default": OptimizerCallback})
    vars(swift).update(callbacks=callbacks, optimizers=optimizers)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    yield swift
    sys.modules.pop(PLUGIN, None)


def built(swift: Any, folder: Path, optimizer: str | None = "padam", **options: Any) -> SwiftTrainer:
    args = arguments(folder, optim="adamw_torch", max_steps=4, optim_args="p=0.4" if optimizer else None)
    for name, value in {"optimizer": optimizer, "callbacks": ["pdyn"], **options}.items():
        setattr(args, name, value)
    return SwiftTrainer(gpt2(), args, swift, train_dataset=token_blocks(16))


def test_its_trainer_has_the_callbacks_and_padam(swift: Any, tmp_path: Path) -> None:
    importlib.import_module(PLUGIN).register(p_control="gradient", p_interval=2, telemetry="layers")
    run = built(swift, tmp_path)
    run.train()
    kinds = [type(callback).__name__ for callback in run.callback_handler.callbacks]
    assert kinds.count("TelemetryCallback") == kinds.count("PControlCallback") == 1
    record = next(record for record in run.state.log_history if "pdyn/control/p" in record)
    assert record["pdyn/p"] == 0.4
    assert {group["pathway"] for group in run.optimizer.param_groups} == {"weight", "bias_like"}


def test_any_optimizer_has_telemetry(swift: Any, tmp_path: Path) -> None:
    importlib.import_module(PLUGIN).register()
    run = built(swift, tmp_path, optimizer=None)
    run.train()
    records = [record for record in run.state.log_history if "loss" in record]
    assert all(record["pdyn/D_w"] > 0 for record in records) and "pdyn/p" not in records[0]


def test_what_cannot_be_meant_is_an_error(swift: Any, tmp_path: Path) -> None:
    plugin = importlib.import_module(PLUGIN)
    with pytest.raises(ValueError, match="Unknown option 'telemetri'.*Did you mean 'telemetry'"):
        plugin.register(telemetri="layers")
    plugin.register(p_control="gradient")
    with pytest.raises(ValueError, match="move the exponent of Padam"):
        built(swift, tmp_path, optimizer=None)
    with pytest.raises(ValueError, match="--vit_lr would have no effect"):
        built(swift, tmp_path, vit_lr=1e-4)


def test_a_later_plugin_replaces_the_options(swift: Any, tmp_path: Path) -> None:
    """A worker process of a data loader reads the plugin file again, too."""
    plugin = importlib.import_module(PLUGIN)
    for telemetry in ("layers", "none"):
        plugin.register(telemetry=telemetry)
    assert "TelemetryCallback" not in [type(one).__name__ for one in built(swift, tmp_path).callback_handler.callbacks]


def installed() -> None:
    try:
        version("ms-swift")
    except PackageNotFoundError:
        pytest.skip("ms-swift is not installed")


def ms_swift(folder: Path, *more: str) -> dict[str, Any]:
    """In a process of its own: ms-swift changes transformers."""
    installed()
    command = [sys.executable, "-W", "ignore", "-m", "tests.frontend.ms_swift_worker", str(folder), *more]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_ms_swift_trains_with_it(tmp_path: Path) -> None:
    found = ms_swift(tmp_path)
    records = [record for record in found["history"] if "loss" in record]
    assert all(record["pdyn/D_w"] > 0 and record["pdyn/by_group/mlps/lr"] > 0 for record in records)
    assert records[0]["pdyn/p"] == 0.4 and any("pdyn/control/p" in record for record in records)
    losses = read_epoch(tmp_path / "run", "train")
    assert losses.index.tolist() == [i * 64 // 9 for i in range(9)]


def test_ms_swift_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    assert "--vit_lr would have no effect" in ms_swift(tmp_path, "--vit_lr", "1e-4")["error"]


def test_the_stand_in_is_ms_swifts() -> None:
    """Read as text: importing ms-swift changes transformers."""
    installed()
    spec = importlib.util.find_spec("swift")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    trainer = (package / "trainers" / "mixin.py").read_text()
    for line in (
        "self.optimizer_callback = optimizers_map[args.optimizer or 'default'](args, self)",
        "callbacks.append(callbacks_map[callback](args, self))",
        "self.optimizer_callback.create_optimizer(model=model)",
    ):
        assert line in trainer
    base = (package / "optimizers" / "base.py").read_text().replace("'", '"')
    for line in inspect.getsource(OptimizerCallback.create_optimizer).splitlines()[1:]:
        assert line.strip().replace("Trainer.", "HfTrainer.") in base
