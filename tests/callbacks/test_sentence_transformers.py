"""Telemetry and control of the Trainers of sentence-transformers and setfit, where these are installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from hf_pdyn import PControlCallback, SampleLossCallback, TelemetryCallback
from hf_pdyn.run_dir import run_json

sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own


def text(*numbers: int) -> str:
    return " ".join(f"w{number % 40}" for number in numbers)


def body(folder: Path) -> Any:
    """A BERT of one layer below a mean over tokens."""
    from sentence_transformers.sentence_transformer import modules

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP")}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    config = BertConfig(vocab_size=len(words), hidden_size=16, intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(folder)
    return sentence_transformers.SentenceTransformer(
        modules=[modules.Transformer(str(folder)), modules.Pooling(16)], device="cpu"
    )


@pytest.mark.parametrize("optim", ["padam", "adamw_torch"])
def test_a_sentence_transformer_has_telemetry_and_no_sample_losses(tmp_path: Path, optim: str) -> None:
    from sentence_transformers.sentence_transformer import losses

    model = body(tmp_path / "body")
    rows = {"anchor": [text(i, 3 * i) for i in range(32)], "positive": [text(i, 5 * i) for i in range(32)]}
    data = Dataset.from_dict(rows)
    args = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), optim=optim, max_steps=8, logging_steps=2, per_device_train_batch_size=4,
        report_to=[], use_cpu=True, save_strategy="no", weight_decay=0.1,
    )  # fmt: skip
    control = [PControlCallback(interval=2)] if optim == "padam" else []
    run = sentence_transformers.SentenceTransformerTrainer(
        model,
        args,
        train_dataset=data,
        eval_dataset=data,
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[TelemetryCallback(), SampleLossCallback(8), *control],
    )
    with pytest.warns(UserWarning, match="SentenceTransformerTrainer's loss compares the texts of a batch") as said:
        run.train()
    assert len([one for one in said if "pdyn sample losses" in str(one.message)]) == 1
    records = [record for record in run.state.log_history if "loss" in record]
    assert len(records) == 4 and all(record["pdyn/D_w"] > 0 and record["pdyn/D_b"] > 0 for record in records)
    if optim == "padam":
        components = {group["component"] for group in run.optimizer.param_groups}
        assert {"attention", "mlp", "norm", "embedding"} <= components
        assert records[-1]["pdyn/control/p"] == run.optimizer.param_groups[0]["p"] != records[0]["pdyn/p"]


@pytest.mark.skipif(find_spec("setfit") is None, reason="setfit is not installed")
def test_the_body_of_a_setfit_model_has_telemetry(tmp_path: Path) -> None:
    """Its Trainer hands callbacks a model that is no module, and calls the loss embedding_loss."""
    import setfit
    from sklearn.linear_model import LogisticRegression

    model = setfit.SetFitModel(model_body=body(tmp_path / "body"), model_head=LogisticRegression())
    data = Dataset.from_dict({"text": [text(i, i + 1) for i in range(16)], "label": [i % 2 for i in range(16)]})
    args = setfit.TrainingArguments(
        output_dir=str(tmp_path / "run"), batch_size=4, max_steps=8, logging_steps=2, report_to="none", l2_weight=0.1
    )
    callbacks = [TelemetryCallback(per_layer=True), PControlCallback(interval=2), SampleLossCallback(8)]
    run = setfit.Trainer(model, args=args, train_dataset=data, callbacks=callbacks)
    run.st_trainer.args.optim = "padam"
    with pytest.warns(UserWarning, match="loss compares the texts of a batch"):
        run.train()
    records = [record for record in run.st_trainer.state.log_history if "embedding_loss" in record]
    assert records and all(record["pdyn/D_w"] > 0 for record in records) and records[-1]["pdyn/a_t"] < 0
    assert any("pdyn/control/p" in record for record in records)
    start = run_json.read(tmp_path / "run")["starts"][0]
    assert start["optimizer"] == "TrainerPadam" and start["model"]["class"] == "SentenceTransformer"
