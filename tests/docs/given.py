"""What the code blocks of the pages need: small stand-ins for a user's model, data, script and runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import Trainer

import hf_pdyn
from tests.training import arguments, gpt2, token_blocks, trainer

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from transformers import HfArgumentParser, Trainer, TrainingArguments
from tests.training import gpt2, token_blocks
(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
run = Trainer(gpt2(), args, train_dataset=token_blocks(), eval_dataset=token_blocks(16, seed=9))
run.train(resume_from_checkpoint=args.resume_from_checkpoint)
run.evaluate()
run.save_state()
"""
OPTIONS = (
    "--output_dir out --use_cpu --max_steps 6 --logging_steps 2 --report_to none --disable_tqdm true --save_strategy no"
)
"""What stands for `...` at the end of a command."""
GROUPS = "- {name: tokens, match: 'wte|wpe', lr_mult: 0.1}\n"


def _finished(folder: Path, **options: Any) -> Path:
    callbacks = [hf_pdyn.TelemetryCallback(), hf_pdyn.AllocationCallback(1), hf_pdyn.SampleLossCallback(16)]
    run = trainer(folder, callbacks=callbacks, **options)
    run.train()
    run.save_state()
    return folder


def _runs() -> list[Path]:
    return [_finished(Path(f"runs/p{p}"), optim_args=f"p={p}") for p in (0.3, 0.4, 0.5)]


MAKERS: dict[str, Callable[[], Any]] = {
    "model": gpt2,
    "lora_model": lambda: get_peft_model(
        gpt2(), LoraConfig(target_modules=["c_attn"], bias="all", fan_in_fan_out=True)
    ),
    "data": token_blocks,
    "dataloader": lambda: DataLoader(token_blocks(), batch_size=8),
    "args": lambda: arguments("out"),
    "output_dir": lambda: "out",
    "trainer": lambda: trainer("out", callbacks=[hf_pdyn.TelemetryCallback()]),
    "Trainer": lambda: Trainer,
    "hf_pdyn": lambda: hf_pdyn,
    "torch": lambda: torch,
    "runs": _runs,
}
"""By name, what `<!-- given: NAME -->` puts into a page's namespace."""


def lay_out(folder: Path, root: Path) -> None:
    """Put what commands name into their working directory."""
    for name in ("recipes", "scripts", "docs", "benchmarks"):
        (folder / name).symlink_to(root / name)
    for script in ("run_clm.py", "train.py"):
        (folder / script).write_text(SCRIPT.format(root=str(root)))
    (folder / "groups.yaml").write_text(GROUPS)
    gpt2().save_pretrained(folder / "gpt2")  # found before a hub is asked
