"""Sample losses and telemetry of TRL's trainers, where it is installed (`pip install trl`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from hf_pdyn import PControlCallback, SampleLossCallback, TelemetryCallback
from hf_pdyn.measure.sample_loss import read_epoch
from tests.training import VOCABULARY, gpt2, token_blocks

trl = pytest.importorskip("trl")

pytestmark = [
    pytest.mark.filterwarnings("default"),  # TRL's and torch's own
    pytest.mark.filterwarnings("error:pdyn:UserWarning"),
]


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def text(*numbers: int) -> str:
    return " ".join(f"w{2 + number % (VOCABULARY - 2)}" for number in numbers)


def pairs(count: int) -> Dataset:
    """Prompts of two words, answers of one to four."""
    rows = [
        {
            "prompt": text(i, 3 * i) + " ",
            "chosen": text(*range(i, i + 1 + i % 4)),
            "rejected": text(*range(5 * i, 5 * i + 1 + i % 3)),
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1, "use_cpu": True}
    common |= {"report_to": [], "save_strategy": "no", "optim": "padam", "seed": 1, "disable_tqdm": True, "bf16": False}
    return common | {"learning_rate": 1e-2, "output_dir": str(folder)} | options


def dpo(folder: Path, callbacks: list[Any], data: Dataset | None = None, **options: Any) -> Any:
    peft_config = options.pop("peft_config", None)
    data = pairs(16) if data is None else data
    return trl.DPOTrainer(
        gpt2(),
        ref_model=None if peft_config else gpt2(seed=7),
        args=trl.DPOConfig(**settings(folder, **options)),
        train_dataset=data,
        eval_dataset=data.select(range(5)),
        processing_class=tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def log_likelihood(model: nn.Module, prompt: list[int], answer: list[int]) -> float:
    tokens = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=tokens).logits[0, :-1].double().log_softmax(-1)
    places = range(len(prompt) - 1, tokens.shape[1] - 1)
    return sum(logits[place, tokens[0, place + 1]].item() for place in places)


LOSSES = {
    "sigmoid": lambda margin, beta: -nn.functional.logsigmoid(beta * margin),
    "hinge": lambda margin, beta: torch.relu(1 - beta * margin),
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_losses_of_dpo_are_those_of_each_pair_alone(tmp_path: Path, loss_type: str) -> None:
    """Within 1e-5, against log-likelihoods in float64."""
    run = dpo(tmp_path, [SampleLossCallback(9)], loss_type=[loss_type], beta=0.3)
    run.train()
    train, test = read_epoch(tmp_path, "train"), read_epoch(tmp_path, "test")
    assert len(train.loss) == 9 and test.index.tolist() == list(range(5))
    for reading, data in ((train, run.train_dataset), (test, run.eval_dataset)):
        assert reading.correct is not None
        for index, loss, correct in zip(reading.index.tolist(), reading.loss, reading.correct, strict=True):
            row = data[index]
            with torch.no_grad():
                ratios = [
                    log_likelihood(run.model, row["prompt_ids"], row[name])
                    - log_likelihood(run.ref_model, row["prompt_ids"], row[name])
                    for name in ("chosen_ids", "rejected_ids")
                ]
            margin = torch.tensor(ratios[0] - ratios[1])
            assert loss == pytest.approx(LOSSES[loss_type](margin, 0.3).item(), rel=1e-5, abs=1e-6)
            assert correct == (margin > 0)
    record = next(record for record in run.state.log_history if "pdyn/samples/train/accuracy" in record)
    assert record["pdyn/samples/train/accuracy"] == train.correct.mean()


@pytest.mark.parametrize(
    "options",
    [{}, {"precompute_ref_log_probs": True, "loss_type": ["sigmoid", "sft"]}, {"peft_config": LoraConfig(r=2)}],
    ids=["plain", "two losses", "LoRA"],
)
def test_the_training_and_records_of_dpo_stay(tmp_path: Path, options: dict[str, Any]) -> None:
    runs = []
    for callbacks in ([], [SampleLossCallback(9)]):
        run = dpo(tmp_path / str(len(callbacks)), callbacks, eval_strategy="epoch", max_steps=8, **options)
        run.train()
        runs.append(run)
    weights = [list(run.model.parameters()) for run in runs]
    assert all(torch.equal(p, q) for p, q in zip(*weights, strict=True))
    records = [
        [
            {name: value for name, value in record.items() if not name.endswith(("runtime", "_per_second"))}
            for record in run.state.log_history
            if not any("pdyn/samples" in name for name in record)
        ]
        for run in runs
    ]
    assert records[0] == records[1] and any("eval_rewards/accuracies" in record for record in records[0])
    assert len(read_epoch(tmp_path / "1", "train", 2.0).loss) == 9


def test_telemetry_and_control_of_dpo(tmp_path: Path) -> None:
    run = dpo(tmp_path, [TelemetryCallback(), PControlCallback(interval=1)])
    run.train()
    assert all(record["pdyn/D_w"] > 0 for record in run.state.log_history if "loss" in record)
    assert any("pdyn/control/p" in record for record in run.state.log_history)


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_a_loss_that_sorts_its_batch_is_none_of_pairs(tmp_path: Path, loss_type: str) -> None:
    run = dpo(tmp_path, [SampleLossCallback(9)], loss_type=[loss_type], max_steps=1)
    with pytest.warns(UserWarning, match=f"pdyn sample losses: loss_type={loss_type} sorts the pairs of a batch"):
        run.train()


@pytest.mark.parametrize("margin", [False, True])
def test_losses_of_a_reward_trainer(tmp_path: Path, margin: bool) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=VOCABULARY, num_labels=1)
    config.pad_token_id = 0
    model = GPT2ForSequenceClassification(config)
    rows = [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        | ({"margin": 0.25 * i} if margin else {})
        for i, row in enumerate(pairs(9))
    ]
    data = Dataset.from_list(rows)
    run = trl.RewardTrainer(
        model,
        args=trl.RewardConfig(**settings(tmp_path, center_rewards_coefficient=0.1)),
        train_dataset=data,
        processing_class=tokenizer(),
        callbacks=[SampleLossCallback()],
    )
    run.train()
    losses = read_epoch(tmp_path, "train")
    model.eval()
    for index, loss, correct in zip(losses.index.tolist(), losses.loss, losses.correct, strict=True):  # type: ignore[arg-type]
        row = run.train_dataset[index]
        with torch.no_grad():
            chosen, rejected = (
                model(input_ids=torch.tensor([row[name]])).logits.item() for name in ("chosen_ids", "rejected_ids")
            )
        gap = torch.tensor(chosen - rejected - row.get("margin", 0.0))
        expected = -nn.functional.logsigmoid(gap) + 0.1 * (chosen + rejected) ** 2
        assert loss == pytest.approx(expected.item(), rel=1e-5) and correct == (chosen > rejected)


@pytest.mark.parametrize("packing", [False, True])
def test_losses_of_an_sft_trainer_are_those_of_documents(tmp_path: Path, packing: bool) -> None:
    """Padded and packed (best fit, flattened): within 1e-5 of each document alone."""
    lengths = [2 + i % 7 for i in range(24)]
    rows = [
        {"input_ids": row["input_ids"][:length].tolist()} for row, length in zip(token_blocks(24), lengths, strict=True)
    ]
    args = trl.SFTConfig(**settings(tmp_path, packing=packing, max_length=12, per_device_eval_batch_size=4))
    run = trl.SFTTrainer(
        gpt2(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[SampleLossCallback(None), TelemetryCallback()],
    )
    run.train()
    losses = read_epoch(tmp_path, "train")
    data = run.train_dataset
    documents = [
        document
        for row in data
        for document in torch.tensor(row["input_ids"]).split(row.get("seq_lengths", [len(row["input_ids"])]))
    ]
    assert len(documents) == 24 and (len(data) < 24) == packing
    assert (losses.part is not None) == packing
    run.model.eval()
    with torch.no_grad():
        expected = [run.model(input_ids=one[None], labels=one[None]).loss.item() for one in documents]
    assert losses.loss == pytest.approx(expected, rel=1e-5)


def test_a_trainer_that_generates_its_samples_has_none(tmp_path: Path) -> None:
    class Generates(trl.GRPOTrainer):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            """Nothing of it is needed to see what it is."""

    from hf_pdyn.integrations import own_losses

    assert "GRPOTrainer's loss is not one of single samples" in str(own_losses.why_none(Generates()))
