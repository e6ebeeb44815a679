"""SpectralCallback in a Trainer: when it measures, where its numbers go, and that nothing depends on it."""

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from hf_pdyn import SpectralCallback, TelemetryCallback
from hf_pdyn.measure.attention_lora import AttentionProduct, find_products
from hf_pdyn.measure.spectra import QUANTITIES
from hf_pdyn.run_dir.tables import LAYERS, read_table
from tests.training import arguments, gpt2, saved_state, token_blocks, trainer

KINDS_OF_GPT2 = ("attention", "attention_heads")


def gpt2_lora() -> nn.Module:
    torch.manual_seed(1)
    return peft.get_peft_model(gpt2(), peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))


def train(out: Path, every: int | str = "epoch", *callbacks: TrainerCallback, **options: Any) -> Trainer:
    run = trainer(out, callbacks=[SpectralCallback(every), *callbacks], **options)
    run.train()
    return run


def rows(out: Path) -> list[dict[str, Any]]:
    table, problems = read_table(out, LAYERS)
    assert not problems
    return [row for row in table.to_pylist() if row["name"] in QUANTITIES]


def spectra(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name.startswith("pdyn/spectrum/")}


def records(run: Trainer) -> dict[int, dict[str, float]]:
    """What each record has, by its step; that of the summary, of the same step as the last, under -1."""
    return {-1 if "train_loss" in record else record["step"]: spectra(record) for record in run.state.log_history}


@pytest.mark.parametrize(
    ("every", "max_steps", "expected"),
    [
        ("epoch", 20, [0, 8, 16, 20]),
        ("epoch", 16, [0, 8, 16]),
        (5, 12, [0, 5, 10, 12]),
        (100, 6, [0, 6]),
    ],
)
def test_when_it_measures(tmp_path: Path, every: int | str, max_steps: int, expected: list[int]) -> None:
    train(tmp_path, every, max_steps=max_steps)
    found = rows(tmp_path)
    assert sorted({row["step"] for row in found}) == expected
    # Two layers, of each the whole product and two heads.
    assert len(found) == len(expected) * 2 * 3 * len(QUANTITIES)


class Endless(IterableDataset):
    """Blocks without a length."""

    def __iter__(self) -> Any:
        return iter(token_blocks())


def test_an_epoch_without_a_length_ends_where_it_ends(tmp_path: Path) -> None:
    run = Trainer(gpt2(), arguments(tmp_path), train_dataset=Endless(), callbacks=[SpectralCallback()])
    run.train()
    assert sorted({row["step"] for row in rows(tmp_path)}) == [0, 8, 12]


def test_the_next_record_has_the_averages_and_their_step(tmp_path: Path) -> None:
    found = records(train(tmp_path, 5, logging_steps=4, max_steps=13))
    assert {step: values.get("pdyn/spectrum/step") for step, values in found.items()} == {4: 0, 8: 5, 12: 10, -1: 13}
    names = {f"pdyn/spectrum/{kind}/{name}" for kind in KINDS_OF_GPT2 for name in QUANTITIES} | {"pdyn/spectrum/step"}
    assert all(set(values) == names for values in found.values())


def test_rows_are_of_the_weights_as_they_are(tmp_path: Path) -> None:
    run = train(tmp_path, max_steps=6, logging_steps=6, learning_rate=1e-2)
    last = [row for row in rows(tmp_path) if row["step"] == 6]
    expected = {
        (product.layer, one.part, name): getattr(one.spectrum, name)
        for product in find_products(run.model).products
        for one in product.measure(Tensor.detach)
        for name in QUANTITIES
    }
    assert {(row["layer"], row["part"], row["name"]): row["value"] for row in last} == expected
    assert {row["epoch"] for row in last} == {6 / 8}

    def mean(name: str) -> float:
        values = [row["value"] for row in last if row["part"] == "attention" and row["name"] == name]
        return sum(values) / len(values)

    logged = records(run)[6]
    assert logged["pdyn/spectrum/attention/nuclear"] == pytest.approx(mean("nuclear"))
    assert logged["pdyn/spectrum/attention/nuc_over_fro"] == pytest.approx(mean("nuclear") / mean("frobenius"))
    assert logged["pdyn/spectrum/attention/stable_rank"] == pytest.approx(mean("stable_rank"))


def test_lora_is_missing_while_b_is_zero(tmp_path: Path) -> None:
    found = records(train(tmp_path, 4, model=gpt2_lora(), logging_steps=3, max_steps=6))
    assert not [name for name in found[3] if "lora" in name] and "pdyn/spectrum/attention/nuclear" in found[3]
    assert 1 <= found[6]["pdyn/spectrum/lora/nuc_over_fro"] <= 2  # of rank 4
    parts = {(row["step"], row["layer"]) for row in rows(tmp_path) if row["part"] == "lora"}
    assert parts == {(step, f"transformer.h.{i}.attn.c_attn") for step in (4, 6) for i in range(2)}


def test_training_is_the_same_with_it(tmp_path: Path) -> None:
    runs = [trainer(tmp_path / "without", callbacks=[]), trainer(tmp_path / "with", callbacks=[SpectralCallback(1)])]
    for run in runs:
        run.train()
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)


# Step 16 is the last, step 8 has a measurement that no record has yet. Step 7 is inside an epoch: there transformers
# 5.2 loses the order of the batches, with stock AdamW too.
INSIDE = [(4, 7)] if Version(transformers.__version__) >= Version("5.23") else []


@pytest.mark.parametrize(("every", "saved"), [*INSIDE, (3, 8), ("epoch", 8), ("epoch", 16)])
def test_a_resumed_run_has_the_same_rows_and_records(tmp_path: Path, every: int | str, saved: int) -> None:
    options: dict[str, Any] = {"max_steps": 16, "logging_steps": 5, "save_strategy": "steps", "save_steps": saved}
    straight = train(tmp_path / "straight", every, TelemetryCallback(per_layer=True), **options)

    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for checkpoint in (tmp_path / "resumed").glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{saved}":
            shutil.rmtree(checkpoint)
    resumed = trainer(
        tmp_path / "resumed", callbacks=[SpectralCallback(every), TelemetryCallback(per_layer=True)], **options
    )
    resumed.train(resume_from_checkpoint=True)

    assert rows(tmp_path / "resumed") == rows(tmp_path / "straight")
    assert records(resumed) == records(straight)


def test_what_no_record_has_yet_is_in_the_checkpoint(tmp_path: Path) -> None:
    run = train(tmp_path, 4, max_steps=6, logging_steps=5, save_strategy="steps", save_steps=4)
    memory = saved_state(tmp_path / "checkpoint-4")["stateful_callbacks"]["pdyn"]["spectra"]
    assert memory["step"] == 4
    assert memory["unlogged"] == records(run)[5]


def test_a_new_run_in_the_same_directory_replaces_the_rows(tmp_path: Path) -> None:
    for _ in range(2):
        train(tmp_path, 4, max_steps=4)
    assert len(rows(tmp_path)) == 2 * 2 * 3 * len(QUANTITIES)


class Stops(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_a_training_that_is_stopped_is_measured_at_its_end(tmp_path: Path) -> None:
    train(tmp_path, "epoch", Stops())
    assert sorted({row["step"] for row in rows(tmp_path)}) == [0, 3]


def test_one_instance_serves_several_trainings(tmp_path: Path) -> None:
    callback = SpectralCallback(3)
    for name, model in (("one", gpt2()), ("other", gpt2(layers=1))):
        run = trainer(tmp_path / name, model=model, callbacks=[callback], max_steps=3)
        run.train()
    assert {row["layer"] for row in rows(tmp_path / "other")} == {"transformer.h.0.attn"}
    assert sorted({row["step"] for row in rows(tmp_path / "other")}) == [0, 3]


def test_a_failure_ends_the_measuring_alone(tmp_path: Path) -> None:
    original = AttentionProduct.measure
    calls = 0

    def failing(self: AttentionProduct, whole: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of luck")
        return original(self, whole)

    with (
        mock.patch.object(AttentionProduct, "measure", failing),
        pytest.warns(
            UserWarning, match="K.T Q are missing from here on, since .*attn cannot be measured: Run.*luck"
        ) as said,
    ):
        run = train(tmp_path, 3, max_steps=9)
    assert len(said) == 1 and run.state.global_step == 9
    assert calls == 4
    # Of step 3 only half the layers were measured, which no average may hide.
    assert {row["step"] for row in rows(tmp_path)} == {0}


def test_lora_is_measured_on_where_attention_fails(tmp_path: Path) -> None:
    def failing(self: AttentionProduct, whole: Any) -> Any:
        raise NotImplementedError("no such operation")

    with (
        mock.patch.object(AttentionProduct, "measure", failing),
        pytest.warns(UserWarning, match="attention's K.T Q are missing from here on, since .*no such op") as said,
    ):
        run = train(tmp_path, 3, model=gpt2_lora(), max_steps=6)
    assert len([w for w in said if "missing from here on" in str(w.message)]) == 1
    assert {row["part"] for row in rows(tmp_path)} == {"lora"}
    assert "pdyn/spectrum/lora/nuclear" in records(run)[6]


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 4), nn.Linear(4, 64)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embedding(input_ids))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_a_model_without_products_is_told_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Perceptron has no LoRA module and no attention layer that") as said:
        run = train(tmp_path, 2, model=Perceptron(), max_steps=4)
    assert len(said) == 1
    assert not rows(tmp_path) and not any(records(run).values())


def test_where_no_weight_is_whole_the_reason_is_said(tmp_path: Path) -> None:
    with (
        mock.patch("hf_pdyn.callbacks.spectral.has_fsdp1", return_value=True),
        pytest.warns(UserWarning, match="use FSDP2") as said,
    ):
        run = train(tmp_path, 2, max_steps=4)
    assert len(said) == 1 and not any(records(run).values())


def test_layers_that_cannot_be_measured_are_named_once(tmp_path: Path) -> None:
    model = gpt2()
    model.transformer.h[1].attn.num_heads = 3
    said = r"missing for 1 layers, the first is transformer\.h\.1\.attn: 16 rows of Q and 16 of K are not heads of 8"
    with pytest.warns(UserWarning, match=said) as warned:
        train(tmp_path, 2, model=model, max_steps=4)
    assert len(warned) == 1
    assert {row["layer"] for row in rows(tmp_path)} == {"transformer.h.0.attn"}
