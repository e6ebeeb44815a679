"""Group rules with trainers and optimizers of other packages; what is not installed is skipped by name."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_pdyn import GroupRulesCallback, TelemetryCallback
from tests.callbacks.gauges_table import OPTIMIZERS
from tests.training import gpt2, trainer, training_logs

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages

RULES: list[dict[str, Any]] = [
    {"name": "embeddings", "match": "wte|wpe", "lr_mult": 0.1},
    {"name": "body", "match": r"\.h\.", "layer": 0.5, "weight_decay": 0.2},
]
LOW_BIT = ("AdamW8bit of torchao", "8-bit AdamW of bitsandbytes")


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("optim", ["adamw_torch", "padam"])
def test_trl_s_sft_trainer_has_the_groups_of_the_file(tmp_path: Path, optim: str) -> None:
    needs("trl")
    from tests.callbacks.sft_groups_table import COLUMNS, NAMES, STEPS, train

    run = train(tmp_path, optim)
    records = training_logs(run.state.log_history)
    for record in records:
        assert all(f"pdyn/by_group/{name}/{column}" in record for name in NAMES for column in COLUMNS)
    first, last = records[0], records[-1]
    assert first["pdyn/by_group/embeddings/lr"] == pytest.approx(0.1 * first["pdyn/by_group/attention_layers/lr"] / 0.8)
    assert first["pdyn/by_group/mlp_layers/weight_decay"] > last["pdyn/by_group/mlp_layers/weight_decay"]
    assert last["step"] == STEPS
    assert {group.get("group_name") for group in run.optimizer.param_groups} == {*NAMES, None}


@pytest.mark.parametrize("name", LOW_BIT)
def test_low_bit_optimizers_step_the_groups_as_given(tmp_path: Path, name: str) -> None:
    make, package = OPTIMIZERS[name]
    needs(package)
    model = gpt2()
    before = {key: param.detach().clone() for key, param in model.named_parameters()}
    rules = [*RULES[:1], {"name": "still", "match": "ln_f", "lr": 0.0}, RULES[1]]
    callbacks = [GroupRulesCallback(rules), TelemetryCallback()]
    assert callable(make)
    run = trainer(
        tmp_path,
        model,
        optimizers=(make(model), None),
        lr_scheduler_type="linear",
        max_steps=4,
        logging_steps=1,
        callbacks=callbacks,
    )
    run.train()
    records = training_logs(run.state.log_history)
    rates = [
        float(record["pdyn/by_group/embeddings/lr"]) for record in records if "pdyn/by_group/embeddings/lr" in record
    ]
    assert rates == pytest.approx([0.1 * 1e-3 * (1 - step / 4) for step in range(4)])
    shares = [records[-1][f"pdyn/by_group/{group}/update_share"] for group in ("embeddings", "body")]
    assert all(share > 0 for share in shares) and sum(shares) == pytest.approx(1)
    moved = {key: not torch.equal(param, before[key]) for key, param in model.named_parameters()}
    assert not any(moved[key] for key in moved if "ln_f" in key) and moved["transformer.wte.weight"]
