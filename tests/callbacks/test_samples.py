"""Losses of single samples at the end of every epoch, beside a training that stays what it was."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForQuestionAnswering,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2ForSequenceClassification,
    Trainer,
    TrainerCallback,
)

from hf_pdyn import SampleLossCallback, TelemetryCallback
from hf_pdyn.callbacks.samples import _lengths_of_all
from hf_pdyn.measure.sample_loss import epochs, read_epoch
from hf_pdyn.run_dir import run_json
from hf_pdyn.run_dir.tables import SAMPLE_LOSSES, read_table
from tests.training import arguments, gpt2, token_blocks, trainer, training_logs


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in SAMPLE_LOSSES.folder(run_dir).glob("*"))


def one_by_one(model: nn.Module, data: Any) -> list[float]:
    """What the model's own loss says of each sample alone."""
    model.eval()
    with torch.no_grad():
        return [
            model(**{name: torch.as_tensor(value)[None] for name, value in sample.items()}).loss.item()
            for sample in data
        ]


def weights_equal(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_losses_are_those_of_each_sample_alone(tmp_path: Path) -> None:
    """Within 1e-6: a batch's matrix products add in another order than a single sample's, in float32."""
    run = trainer(tmp_path, callbacks=[SampleLossCallback(7)], num_train_epochs=2, max_steps=-1)
    run.train()
    assert files(tmp_path) == ["epoch-0001.parquet", "epoch-0002.parquet"]
    train, test = read_epoch(tmp_path, "train"), read_epoch(tmp_path, "test")
    assert (train.step, train.epoch, epochs(tmp_path)) == (16, 2.0, [1.0, 2.0])
    assert train.index.tolist() == [0, 9, 18, 27, 36, 45, 54] and test.index.tolist() == list(range(16))
    assert train.loss == pytest.approx(one_by_one(run.model, [run.train_dataset[i] for i in train.index]), rel=1e-6)
    assert test.loss == pytest.approx(one_by_one(run.model, run.eval_dataset), rel=1e-6)
    assert train.correct is None and test.correct is None

    record = next(record for record in reversed(run.state.log_history) if "pdyn/samples/test/p95" in record)
    assert record["step"] == 16
    for split, losses in (("train", train), ("test", test)):
        row = losses.summary().to_dict()
        assert row.pop("accuracy") is None and row.pop("count") == len(losses.loss)
        assert {name: record[f"pdyn/samples/{split}/{name}"] for name in row} == row


def test_another_train_set_is_measured_in_place_of_the_trainers(tmp_path: Path) -> None:
    """All of it, and by name in the record of the run; within 1e-6, as above."""
    clean = Dataset.from_list(
        [{"input_ids": row["input_ids"].tolist()} | {"labels": row["labels"].tolist()} for row in token_blocks(9)]
    )
    run = trainer(tmp_path, callbacks=[SampleLossCallback(None, test_probe=0, train_set=clean)], max_steps=8)
    run.train()
    measured = read_epoch(tmp_path, "train")
    assert measured.index.tolist() == list(range(9))
    assert measured.loss == pytest.approx(one_by_one(run.model, clean), rel=1e-6)
    (recorded,) = run_json.read(tmp_path)["starts"][0]["callbacks"]
    assert recorded == {"name": "SampleLossCallback", "train_probe": None, "test_probe": 0, "train_set": "Dataset"}


def test_a_file_is_a_data_set(tmp_path: Path) -> None:
    trainer(tmp_path / "run", callbacks=[SampleLossCallback(5)], max_steps=10).train()
    folder = str(SAMPLE_LOSSES.folder(tmp_path / "run"))
    loaded = load_dataset("parquet", data_dir=folder, cache_dir=str(tmp_path / "cache"), split="train")
    assert len(loaded) == 2 * (5 + 16) and set(loaded["split"]) == {"train", "test"}


class Random:
    """A collator that draws from every generator, and from one of its own."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(5)
        self.drawn: list[float] = []

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.drawn.append(random.random() + float(np.random.rand()) + torch.rand(1, generator=self.own).item())
        tokens = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": torch.where(torch.rand(tokens.shape) < 0.2, 0, tokens), "labels": tokens}


class WithRandomData(Trainer):
    def __init__(self, **options: Any) -> None:
        super().__init__(data_collator=Random(), **options)


OTHERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation, not coming out even": {"gradient_accumulation_steps": 3},
    "evaluation and checkpoints": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "eval_strategy": "epoch"},
    "bf16": {"bf16": True},
}


@pytest.mark.parametrize("size", [-1, 1.5, "5", True])
def test_what_is_no_number_of_samples_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=f"train_probe must be a number of samples >= 0, got {size!r}"):
        SampleLossCallback(size)


@pytest.mark.parametrize("name", OTHERS)
def test_the_training_is_the_same_bit_for_bit(tmp_path: Path, name: str) -> None:
    runs = []
    for callbacks in ([], [SampleLossCallback(20)]):
        model = gpt2()
        model.transformer.h[0].mlp.dropout.p = 0.3
        run = trainer(
            tmp_path / str(len(callbacks)),
            model=model,
            callbacks=[TelemetryCallback(), *callbacks],
            trainer_class=WithRandomData,
            max_steps=20,
            **OTHERS[name],
        )
        run.train()
        runs.append(run)
    plain, measured = runs
    assert weights_equal(plain, measured)
    assert training_logs(plain.state.log_history) == training_logs(measured.state.log_history)
    evaluations = [[r["eval_loss"] for r in run.state.log_history if "eval_loss" in r] for run in runs]
    assert evaluations[0] == evaluations[1] and bool(evaluations[0]) == ("eval_strategy" in OTHERS[name])
    assert plain.data_collator.drawn == measured.data_collator.drawn
    assert len(epochs(tmp_path / "1")) == (7 if "accumulation" in name else 3)


def test_what_is_drawn_is_the_same_in_every_run(tmp_path: Path) -> None:
    """A learning rate of zero, so that only the draws could differ."""
    for name, seed in (("a", 1), ("b", 2)):
        callbacks = [SampleLossCallback(20)]
        options: dict[str, Any] = {"trainer_class": WithRandomData, "learning_rate": 0.0, "max_steps": 16}
        trainer(tmp_path / name, callbacks=callbacks, seed=seed, **options).train()
    readings = [read_epoch(tmp_path / name, "train", epoch).loss for name in "ab" for epoch in (1, 2)]
    assert all(np.array_equal(reading, readings[0]) for reading in readings)


class Modes(TrainerCallback):
    """Whether the model is in training mode, module by module, and gradients are on, at the end of every step."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found.append(
            ([module.training for module in model.modules()], torch.is_grad_enabled(), control.should_log)
        )


def test_modes_and_announced_records_stay(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [SampleLossCallback(20)]):
        modes = Modes()
        trainer(tmp_path, callbacks=[*callbacks, modes], max_steps=8, logging_steps=8).train()
        found.append(modes.found)
    assert found[0] == found[1]
    assert found[0][-1][2]  # the step's record is due


def classifier(labels: int = 3, **options: Any) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=64, num_labels=labels, **options)
    config.pad_token_id = 0
    return GPT2ForSequenceClassification(config)


def classes(count: int, labels: int = 3) -> list[dict[str, Any]]:
    blocks = token_blocks(count, seed=4)
    return [{"input_ids": block["input_ids"], "labels": i % labels} for i, block in enumerate(blocks)]


def run_of(tmp_path: Path, model: nn.Module, train: Any, test: Any = None, **options: Any) -> Trainer:
    callback = SampleLossCallback(**options.pop("callback", {}))
    options = {"max_steps": 3, **options}
    return Trainer(
        model=model, args=arguments(tmp_path, **options), train_dataset=train, eval_dataset=test, callbacks=[callback]
    )


def test_classification(tmp_path: Path) -> None:
    data = Dataset.from_list([{**row, "input_ids": row["input_ids"].tolist(), "name": "x"} for row in classes(11)])
    run = run_of(tmp_path, classifier(), data, data, callback={"test_probe": 4}, label_smoothing_factor=0.1)
    run.train()
    train, test = read_epoch(tmp_path, "train"), read_epoch(tmp_path, "test")
    model = run.model.eval()
    logits = model(input_ids=torch.tensor(data["input_ids"])).logits.detach()
    labels = torch.tensor(data["labels"])
    expected = functional.cross_entropy(logits, labels, reduction="none")
    assert train.loss == pytest.approx(expected.tolist(), rel=1e-6)
    assert train.correct is not None and train.correct.tolist() == (logits.argmax(1) == labels).tolist()
    assert test.index.tolist() == [0, 2, 5, 8] and test.loss.tolist() == train.loss[[0, 2, 5, 8]].tolist()
    record = [record for record in run.state.log_history if "pdyn/samples/train/accuracy" in record][-1]
    assert record["pdyn/samples/train/accuracy"] == train.correct.mean()


def test_lora_is_a_causal_model_too(tmp_path: Path) -> None:
    model = get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    run = run_of(tmp_path, model, token_blocks(9))
    run.train()
    assert read_epoch(tmp_path, "train").loss == pytest.approx(one_by_one(run.model, run.train_dataset), rel=1e-6)


def ragged(count: int) -> list[dict[str, Any]]:
    """Samples of 2 to 12 tokens."""
    blocks = [row["input_ids"][: 2 + 5 * i % 11].tolist() for i, row in enumerate(token_blocks(count))]
    return [{"input_ids": tokens, "labels": tokens} for tokens in blocks]


def with_collator(tmp_path: Path, collator: Any, train: Any, **options: Any) -> Trainer:
    run = run_of(tmp_path, gpt2(), train, num_train_epochs=2, max_steps=-1, **options)
    run.data_collator = collator
    run.train()
    return run


def test_flattened_batches_are_measured_by_sample(tmp_path: Path) -> None:
    """Within 1e-5: the attention of the flattened row adds in another order."""
    run = with_collator(tmp_path, DataCollatorWithFlattening(), ragged(21))
    losses = read_epoch(tmp_path, "train")
    assert losses.index.tolist() == list(range(21))
    assert losses.loss == pytest.approx(one_by_one(run.model, run.train_dataset), rel=1e-5)


def packed(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """As TRL with packing: a sample is a packed row of two texts of six tokens, and a batch is flattened."""
    tokens = torch.cat([torch.as_tensor(row["input_ids"]) for row in rows])[None]
    return {"input_ids": tokens, "labels": tokens, "position_ids": (torch.arange(tokens.shape[1]) % 6)[None]}


def pairs(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tokens = torch.stack([row["input_ids"] for row in rows for _ in range(2)])
    return {"input_ids": tokens, "labels": tokens}


@pytest.mark.parametrize(
    ("collator", "rows", "tokens"),
    [(DataCollatorWithFlattening(return_position_ids=False), 1, 2), (packed, 1, 12), (pairs, 16, 12)],
    ids=["flattened without positions", "packed", "two rows a sample"],
)
def test_rows_that_are_not_samples_end_the_split_with_one_warning(
    tmp_path: Path, collator: Any, rows: int, tokens: int
) -> None:
    train = [{name: value[:tokens] for name, value in row.items()} for row in token_blocks(16)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = with_collator(tmp_path, collator, train)
    (told,) = [str(warning.message) for warning in caught if "pdyn sample losses" in str(warning.message)]
    assert "of train: ValueError: sample losses need a row for each sample" in told
    assert f"made {rows} row(s) of 8 samples" in told and told.endswith("Training goes on without them.")
    assert run.state.global_step == 4 and files(tmp_path) == []


def losses_of_packed(run: Trainer) -> list[float]:
    """Of each text of six tokens alone."""
    halves = [half for row in run.train_dataset for half in torch.as_tensor(row["input_ids"]).split(6)]
    return one_by_one(run.model, [{"input_ids": half, "labels": half} for half in halves])


def test_documents_packed_into_a_row_have_a_loss_each(tmp_path: Path) -> None:
    """Within 1e-5, as above. Indices are those of the rows."""
    run = with_collator(tmp_path, packed, token_blocks(6), per_device_eval_batch_size=1)
    losses = read_epoch(tmp_path, "train")
    assert losses.index.tolist() == [i for i in range(6) for _ in range(2)]
    assert losses.part is not None and losses.part.tolist() == [0, 1] * 6
    assert losses.loss == pytest.approx(losses_of_packed(run), rel=1e-5)
    record = next(record for record in run.state.log_history if "pdyn/samples/train/mean" in record)
    assert record["pdyn/samples/train/mean"] == pytest.approx(read_epoch(tmp_path, "train", 1.0).loss.mean())


def test_rows_that_keep_their_documents_lengths_are_measured_one_at_a_time(tmp_path: Path) -> None:
    """As TRL's packed data sets, in batches whose collator flattens them."""
    rows = [{"input_ids": row["input_ids"].tolist(), "seq_lengths": [6, 6]} for row in token_blocks(6)]
    run = with_collator(tmp_path, packed, Dataset.from_list(rows), remove_unused_columns=False)
    losses = read_epoch(tmp_path, "train")
    assert losses.loss == pytest.approx(losses_of_packed(run), rel=1e-5)


def answering() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForQuestionAnswering(BertConfig(vocab_size=64, intermediate_size=32, **sizes))


def answers(count: int) -> Dataset:
    """With the columns that features of SQuAD have besides, and an answer that was cut off."""
    rows = [
        {
            "input_ids": row["input_ids"].tolist(),
            "start_positions": 12 if i == 2 else i % 12,
            "end_positions": 12 if i == 2 else min(11, i % 12 + i % 3),
            "example_id": f"question {i}",
            "offset_mapping": [[0, 1]] * 12,
        }
        for i, row in enumerate(token_blocks(count))
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("lora", [False, True])
def test_answers_of_questions(tmp_path: Path, lora: bool) -> None:
    """Against the model's own loss of each sample; the evaluation features, as often, have no positions."""
    model = answering()
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="QUESTION_ANS", r=2, target_modules=["query"]))
    data = answers(11)
    test = data.remove_columns(["start_positions", "end_positions"])
    run = run_of(tmp_path, model, data, test, num_train_epochs=1, max_steps=-1)
    said = "of test: ValueError: sample losses need one tensor of labels in a batch, or start_positions and end_positio"
    with pytest.warns(UserWarning, match=said), pytest.warns(UserWarning, match="of train: 1 of 11 samples have no la"):
        run.train()
    losses = read_epoch(tmp_path, "train")
    whole = [i for i in range(11) if i != 2]
    assert losses.index.tolist() == whole and losses.correct is not None
    kept = data.select(whole).select_columns(["input_ids", "start_positions", "end_positions"])
    assert losses.loss == pytest.approx(one_by_one(run.model, kept), rel=1e-6)
    record = next(record for record in run.state.log_history if "pdyn/samples/train/accuracy" in record)
    assert record["pdyn/samples/train/accuracy"] == losses.correct.mean()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_encoder_and_decoder_shift_nothing(tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model", "max_position_embeddings"), 16)
    torch.manual_seed(0)
    run = run_of(tmp_path, BartForConditionalGeneration(BartConfig(vocab_size=64, **sizes)), token_blocks(9))
    run.train()
    assert read_epoch(tmp_path, "train").loss == pytest.approx(one_by_one(run.model, run.train_dataset), rel=1e-6)


def test_several_test_sets(tmp_path: Path) -> None:
    run = run_of(tmp_path, gpt2(), token_blocks(8), {"a": token_blocks(2, seed=1), "b": token_blocks(3, seed=2)})
    run.train()
    assert [len(read_epoch(tmp_path, f"test/{name}").loss) for name in "ab"] == [2, 3]
    assert any("pdyn/samples/test/b/p99" in record for record in run.state.log_history)


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(token_blocks(64))


class Endless:
    def __len__(self) -> int:
        raise TypeError("nobody knows")

    def __getitem__(self, i: int) -> Any:
        return token_blocks(1)[0]


def broken_at(index: int) -> Any:
    class Broken(list):  # type: ignore[type-arg]
        def __getitem__(self, i: Any) -> Any:
            if i == index:
                raise OSError("cannot be read")
            return super().__getitem__(i)

    return Broken(token_blocks(4))


class Bare(nn.Module):
    """A model whose output is a loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, input_ids: Any, labels: Any = None) -> dict[str, Any]:
        return {"loss": self.weight.square().sum()}


UNAVAILABLE: dict[str, tuple[Any, Any, Any, str, list[str]]] = {
    "a stream": (gpt2, Stream, lambda: token_blocks(4), "of train: Stream is read in order only", ["test"]),
    "regression": (
        lambda: classifier(1),
        lambda: [{**row, "labels": 0.5} for row in classes(4)],
        lambda: None,
        "of train: ValueError: sample losses need labels that are classes",
        [],
    ),
    "no logits": (Bare, lambda: token_blocks(4), lambda: None, "logits, which Bare does not return", []),
    "no labels": (
        gpt2,
        lambda: token_blocks(4),
        lambda: [{"input_ids": row["input_ids"]} for row in token_blocks(4)],
        "of test: ValueError: sample losses need one tensor of labels",
        ["train"],
    ),
    "a sample that cannot be loaded": (
        gpt2,
        lambda: token_blocks(4),
        lambda: broken_at(2),
        "of test: OSError: cannot be read, on process 0. Training goes on",
        ["train"],
    ),
    "a length that is not told": (
        gpt2,
        lambda: token_blocks(4),
        Endless,
        r"of test: it does not tell its length \(TypeError: nobody knows\)",
        ["train"],
    ),
    "nothing": (gpt2, lambda: token_blocks(4), list, "of test: it is empty", ["train"]),
}


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_what_cannot_be_measured_is_said_once(tmp_path: Path, name: str) -> None:
    model, train, test, message, splits = UNAVAILABLE[name]
    run = run_of(tmp_path, model(), train(), test(), max_steps=6, logging_steps=1)
    with pytest.warns(UserWarning, match=f"pdyn sample losses.*{message}") as said:
        run.train()
    assert len([one for one in said if "sample losses" in str(one.message)]) == 1
    assert run.state.global_step == 6
    assert sorted(set(read_table(tmp_path, SAMPLE_LOSSES)[0]["split"].to_pylist())) == splits


class Replaces(TrainerCallback):
    """Gives the Trainer another evaluation set after the first epoch."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.eval_dataset = token_blocks(3)


def test_a_data_set_that_goes_ends_its_losses_and_no_training(tmp_path: Path) -> None:
    replaces = Replaces()
    run = trainer(tmp_path, callbacks=[SampleLossCallback(4), replaces], max_steps=24)
    replaces.trainer = run
    run.eval_dataset = {"a": token_blocks(2)}
    with pytest.warns(UserWarning, match="test/a: LookupError") as said:
        run.train()
    assert len([one for one in said if "sample losses" in str(one.message)]) == 1
    assert run.state.global_step == 24
    recorded = read_table(tmp_path, SAMPLE_LOSSES)[0].select(["split", "epoch"]).to_pylist()
    assert {(row["split"], row["epoch"]) for row in recorded} == {
        ("train", 1.0), ("train", 2.0), ("train", 3.0), ("test/a", 1.0),
    }  # fmt: skip


@pytest.mark.parametrize("part", ["loader", "evaluating"])
def test_where_forwards_are_collective_every_failure_before_them_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Else the others, at the gathering before a forward pass, would meet this one at the gathering of results."""
    told: list[Any] = []

    def gathered(value: Any) -> list[Any]:
        told.append(value)
        return [value]

    def fails(*_: Any) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr("hf_pdyn.callbacks.samples.gathered", gathered)
    monkeypatch.setattr("hf_pdyn.callbacks.sample_reading.gathered", gathered)
    monkeypatch.setattr("hf_pdyn.integrations.probing.forwards_together", lambda _: True)
    monkeypatch.setattr(f"hf_pdyn.integrations.probing.{part}", fails)
    with pytest.warns(UserWarning, match="train: MemoryError.*process 0"):
        trainer(tmp_path, callbacks=[SampleLossCallback(20, 0)], max_steps=8).train()
    assert told == [{"train": 64}, True, "MemoryError: none left"]


def test_processes_agree_on_what_they_measure() -> None:
    found = [{"a": 3, "b": 4, "c": "it is empty", "d": 1}, {"a": 3, "b": 5, "c": 2}]
    assert _lengths_of_all(found[:1]) == found[0]
    assert _lengths_of_all(found) == {
        "a": 3,
        "b": "its length is not the same on all processes: 4, 5",
        "c": "it is empty, on process 0",
        "d": "there is no such data set, on process 1",
    }


def test_a_sample_without_labels_is_missing(tmp_path: Path) -> None:
    blocks = token_blocks(4)
    blocks[2]["labels"] = torch.full((12,), -100)
    run = run_of(tmp_path, gpt2(), blocks, max_steps=2)
    with pytest.warns(UserWarning, match="of train: 1 of 4 samples have no label"):
        run.train()
    losses = read_epoch(tmp_path, "train")
    assert losses.index.tolist() == [0, 1, 3] and losses.unlabelled == 1
    assert len(read_table(tmp_path, SAMPLE_LOSSES)[0]) == 8


def test_a_loss_that_is_not_finite_is_recorded(tmp_path: Path) -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.wpe.weight[0, 0] = torch.nan
    run = run_of(tmp_path, model, token_blocks(4), max_steps=1)
    run.train()
    assert np.isnan(read_epoch(tmp_path, "train").loss).all()
    record = next(record for record in run.state.log_history if "pdyn/samples/train/nonfinite" in record)
    assert record["pdyn/samples/train/nonfinite"] == 4 and "pdyn/samples/train/mean" not in record


# Step 16 ends an epoch, so that the resumed run never comes to that epoch's end; step 20 ends none.
@pytest.mark.parametrize("saved", [16, 20])
def test_a_resumed_run_has_the_files_of_the_uninterrupted_one(tmp_path: Path, saved: int) -> None:
    options: dict[str, Any] = {"max_steps": 30, "save_strategy": "steps", "save_steps": saved, "trainer_class": InOrder}
    straight = trainer(tmp_path / "straight", callbacks=[SampleLossCallback(9)], **options)
    straight.train()
    assert epochs(tmp_path / "straight") == [1.0, 2.0, 3.0, 3.75]
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-30", ignore_errors=True)
    later = SAMPLE_LOSSES.folder(tmp_path / "resumed") / "epoch-0003.parquet"
    before = later.stat().st_mtime_ns
    resumed = trainer(tmp_path / "resumed", callbacks=[SampleLossCallback(9)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{saved}"))
    assert later.stat().st_mtime_ns > before
    assert files(tmp_path / "resumed") == files(tmp_path / "straight")
    ours, expected = (read_table(tmp_path / name, SAMPLE_LOSSES)[0] for name in ("resumed", "straight"))
    assert ours.equals(expected)
    logged = [[r for r in run.state.log_history if "pdyn/samples/test/mean" in r] for run in (resumed, straight)]
    assert logged[0] == logged[1] and len(logged[0]) == 4


class InOrder(Trainer):
    """transformers 5.2 loses the order of the batches where a checkpoint lies within an epoch."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_an_epoch_that_ended_early_is_replaced_by_the_whole_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 12, "trainer_class": InOrder}
    trainer(tmp_path, callbacks=[SampleLossCallback(3)], max_steps=12, **options).train()
    assert epochs(tmp_path) == [1.0, 1.5]
    trainer(tmp_path, callbacks=[SampleLossCallback(3)], max_steps=16, **options).train(resume_from_checkpoint=True)
    assert epochs(tmp_path) == [1.0, 2.0] and files(tmp_path) == ["epoch-0001.parquet", "epoch-0002.parquet"]


def test_many_rows_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pdyn.callbacks.row_buffer._FLUSH_AT", 5)
    trainer(tmp_path, callbacks=[SampleLossCallback()], max_steps=8).train()
    assert files(tmp_path) == ["epoch-0001.parquet"] and len(read_epoch(tmp_path, "train").loss) == 64


@pytest.mark.parametrize("sizes", [{"train_probe": -1}, {"test_probe": -5}])
def test_a_probe_has_a_size(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a number of samples >= 0"):
        SampleLossCallback(**sizes)


def test_probes_of_none(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[SampleLossCallback(0, 0)], max_steps=8).train()
    assert files(tmp_path) == []
