"""The plugin for axolotl: against a stand-in of what it needs of axolotl 0.19, and in axolotl where it is installed."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from transformers import Trainer

from hf_pdyn import AllocationCallback, FindingsCallback, PControlCallback, TelemetryCallback
from hf_pdyn.measure.sample_loss import read_epoch
from tests.training import arguments, gpt2, token_blocks

BASE = "axolotl.integrations.base"
PLUGIN = "hf_pdyn.frontend.axolotl"


class BasePlugin:
    """axolotl 0.19's, as far as the plugin overrides it."""

    def register(self, cfg: dict) -> None: ...

    def get_input_args(self) -> str | None: ...

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list:
        return []

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None: ...


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("axolotl", "axolotl.integrations", BASE):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[BASE], "BasePlugin", BasePlugin, raising=False)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    yield importlib.import_module(PLUGIN)
    sys.modules.pop(PLUGIN, None)


def configuration(plugin: Any, **options: Any) -> Any:
    """As axolotl makes it: a pydantic class of its own options and the plugins', whose values are read by name."""
    module, _, name = plugin.PdynPlugin().get_input_args().rpartition(".")
    assert module == PLUGIN

    class Axolotls(BaseModel):
        optimizer: str = "padam"
        embedding_lr: float | None = None

    class Merged(Axolotls, getattr(plugin, name)):  # type: ignore[misc]
        pass

    return SimpleNamespace(**Merged(**options).model_dump())


def test_the_options_are_those_of_the_command_line(plugin: Any) -> None:
    cfg = configuration(plugin, pdyn={"telemetry": "layers", "p_control": "gradient", "p_interval": 5, "spectra": 10})
    found = plugin.PdynPlugin().add_callbacks_pre_trainer(cfg, None)
    kinds = [type(callback).__name__ for callback in found]
    assert {"TelemetryCallback", "PControlCallback", "SpectralCallback", "AllocationCallback"} <= set(kinds)
    control = next(callback for callback in found if isinstance(callback, PControlCallback))
    assert control.interval == 5 and found[kinds.index("TelemetryCallback")].per_layer


def test_telemetry_is_on_without_options(plugin: Any) -> None:
    found = plugin.PdynPlugin().add_callbacks_pre_trainer(configuration(plugin), None)
    assert [type(callback) for callback in found] == [TelemetryCallback, AllocationCallback, FindingsCallback]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pdyn": {"telemetri": "layers"}}, "Unknown option 'telemetri'.*Did you mean 'telemetry'"),
        ({"pdyn": {"p_control": "sometimes"}}, "p_control must be one of"),
        ({"optimizer": "padam", "embedding_lr": 1e-4}, "embedding_lr would have no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_the_configuration_is_read(
    plugin: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        configuration(plugin, **options)
    if "embedding_lr" in options:  # other optimizers have axolotl's groups
        assert configuration(plugin, **options | {"optimizer": "adamw_torch"}).embedding_lr == 1e-4


def test_a_trainer_has_the_callbacks_and_is_checked(plugin: Any, tmp_path: Path) -> None:
    cfg, door = configuration(plugin, pdyn={"p_control": "gradient", "p_interval": 2}), plugin.PdynPlugin()
    door.register({})
    for optim in ("padam", "adamw_torch"):
        run = Trainer(
            gpt2(),
            arguments(tmp_path, optim=optim, max_steps=4),
            train_dataset=token_blocks(16),
            callbacks=door.add_callbacks_pre_trainer(cfg, None),
        )
        if optim == "adamw_torch":
            with pytest.raises(ValueError, match="move the exponent of Padam"):
                door.post_trainer_create(cfg, run)
        else:
            door.post_trainer_create(cfg, run)
            run.train()
            assert any("pdyn/control/p" in record for record in run.state.log_history)


def axolotl(folder: Path, **options: Any) -> dict[str, Any]:
    """In a process of its own: axolotl changes transformers, and starts its worker processes anew."""
    if find_spec("axolotl") is None:
        pytest.skip("axolotl is not installed")
    worker = Path(__file__).with_name("axolotl_worker.py")
    command = [sys.executable, "-W", "ignore", str(worker), str(folder), json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("packing", [False, True])
def test_axolotl_trains_with_it(tmp_path: Path, packing: bool) -> None:
    """With a groups file, control and sample losses, in rows of single samples and packed."""
    (tmp_path / "groups.yaml").write_text("- {name: mlps, match: mlp, lr_mult: 0.5}\n")
    packed = {"sample_packing": True, "sdp_attention": True, "pad_to_sequence_len": True} if packing else {}
    options = {"telemetry": "layers", "p_control": "gradient", "p_interval": 2, "sample_losses": 9}
    found = axolotl(tmp_path, pdyn=options | {"groups": str(tmp_path / "groups.yaml")}, **packed)
    assert found["trainer"] == "AxolotlTrainer"
    records = [record for record in found["history"] if "loss" in record]
    assert len(records) == 4
    assert all(record["pdyn/D_w"] > 0 and record["pdyn/by_group/mlps/lr"] > 0 for record in records)
    assert any("pdyn/control/p" in record for record in records)
    assert {group["pathway"] for group in found["groups"]} == {"weight", "bias_like"}
    losses = read_epoch(tmp_path / "run", "train")
    assert losses.index.tolist() == [i * 64 // 9 for i in range(9)] and losses.part is None and losses.unlabelled == 0


def test_axolotl_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    found = axolotl(tmp_path, pdyn={"telemetri": "layers"})
    assert "Did you mean 'telemetry'" in found["error"]


def test_the_stand_in_is_axolotls() -> None:
    if find_spec("axolotl") is None:
        pytest.skip("axolotl is not installed")
    from axolotl.integrations.base import BasePlugin as Theirs

    for name, ours in inspect.getmembers(BasePlugin, inspect.isfunction):
        theirs = inspect.signature(getattr(Theirs, name)).parameters
        assert list(inspect.signature(ours).parameters) == list(theirs), name
