"""TRL's SFTTrainer with a file of group rules: run, and written into a document with what `hf-pdyn groups` says before.

python -m tests.callbacks.sft_groups_table docs/groups.md
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback

from hf_pdyn import PdynArguments
from hf_pdyn.cli import main as hf_pdyn
from tests.training import gpt2, training_logs

BEGIN, END = "<!-- sft: begin -->", "<!-- sft: end -->"
FILE = """\
- {name: embeddings, match: "wte|wpe", lr_mult: 0.1}
- {name: attention_layers, match: attn, layer: 0.8}
- {name: mlp_layers, match: mlp, schedule: {weight_decay: "linear:0.1..0"}}
"""
NAMES = ("embeddings", "attention_layers", "mlp_layers")
COLUMNS = ("lr", "weight_decay", "grad_norm", "grad_share", "update_share")
WORDS = [f"word{i}" for i in range(60)]
STEPS = 8


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, made here: nothing is downloaded."""
    tokens = ["<pad>", "<eos>", "<unk>", *WORDS]
    whole = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def train(folder: Path, optim: str) -> Any:
    """An SFTTrainer that has trained a small GPT-2 with the rules of FILE."""
    from trl import SFTConfig, SFTTrainer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "groups.yaml").write_text(FILE)
    texts = [" ".join(WORDS[(i + 3 * j) % len(WORDS)] for j in range(10)) for i in range(32)]
    arguments = SFTConfig(
        output_dir=str(folder / "run"),
        optim=optim,
        learning_rate=1e-3,
        weight_decay=0.1,
        max_steps=STEPS,
        logging_steps=2,
        per_device_train_batch_size=4,
        max_length=16,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    run = SFTTrainer(
        gpt2(),
        args=arguments,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer(),
        callbacks=PdynArguments(groups=str(folder / "groups.yaml"), allocation="none").callbacks(),
    )
    run.remove_callback(PrinterCallback)
    run.train()
    return run


def shown_before(folder: Path) -> str:
    """What `hf-pdyn groups` prints of the model and FILE."""
    gpt2().config.save_pretrained(folder / "model")
    (folder / "groups.yaml").write_text(FILE)
    command = ["groups", "--model", str(folder / "model"), "--groups", str(folder / "groups.yaml")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), mock.patch.dict(os.environ, {"COLUMNS": "110"}):
        hf_pdyn([*command, "--weight_decay", "0.1", "--learning_rate", "1e-3"])
    return printed.getvalue().replace(str(folder / "model"), "MODEL")


def render(folder: Path) -> str:
    """The rules, the groups before training, and the columns that the log records of a training have."""
    records = training_logs(train(folder, "adamw_torch").state.log_history)
    table = [f"| step | group | {' | '.join(COLUMNS)} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for record in (records[0], records[-1]):
        for name in NAMES:
            values = (record[f"pdyn/by_group/{name}/{column}"] for column in COLUMNS)
            table.append(f"| {record['step']} | {name} | {' | '.join(f'{value:.2g}' for value in values)} |")
    libraries = ", ".join(f"{library} {version(library)}" for library in ("trl", "transformers", "torch"))
    parts = (
        f"```yaml\n{FILE.strip()}\n```",
        "`hf-pdyn groups --model MODEL --groups groups.yaml --weight_decay 0.1 --learning_rate 1e-3` prints",
        f"```text\n{_trimmed(shown_before(folder))}\n```",
        f"and the first and last of {len(records)} log records of {STEPS} steps with `optim=adamw_torch` have, each as "
        "`pdyn/by_group/NAME/...`:",
        "\n".join(table),
        f"Measured with {libraries} by `python -m tests.callbacks.sft_groups_table docs/groups.md`.",
    )
    return "\n\n".join(parts)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def main() -> None:
    document = Path(sys.argv[1])
    before, rest = document.read_text().split(BEGIN)
    with tempfile.TemporaryDirectory() as folder:
        text = render(Path(folder))
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
