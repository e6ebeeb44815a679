"""Trains with an installed hf_pdyn and reads what the run left.

Usage: python smoke.py VERSION ENVIRONMENT   in a directory without the sources.
"""

import subprocess
import sys
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import hf_pdyn

version, environment = sys.argv[1], Path(sys.argv[2])
assert hf_pdyn.__version__ == version, (hf_pdyn.__version__, version)
assert Path(hf_pdyn.__file__).is_relative_to(environment), hf_pdyn.__file__

model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=64))
rows = [{"input_ids": [(start + i) % 64 for i in range(12)]} for start in range(64)]
data = [row | {"labels": row["input_ids"]} for row in rows]
args = TrainingArguments(
    output_dir="run", optim="padam", optim_args="p=0.4,update_scale=adam", max_steps=6, logging_steps=1, report_to=[],
    disable_tqdm=True, use_cpu=True, save_strategy="no",
)  # fmt: skip
callbacks = [hf_pdyn.TelemetryCallback(), hf_pdyn.AllocationCallback(1), hf_pdyn.PControlCallback(interval=2)]
trainer = Trainer(model, args, train_dataset=data, callbacks=callbacks)
trainer.train()
trainer.save_state()
record = [record for record in trainer.state.log_history if "loss" in record][-1]
assert {"pdyn/D_w", "pdyn/D_b", "pdyn/p", "pdyn/allocation/lr_factor"} <= record.keys(), sorted(record)

command = environment / "bin" / "hf-pdyn"
for arguments in (["--version"], ["explain", "run"], ["compare", "run"], ["report", "run", "-o", "report.html"]):
    subprocess.run([command, *arguments], check=True, stdout=subprocess.DEVNULL)
assert Path("report.html").stat().st_size > 100_000
print(f"hf_pdyn {version} trains, steers and reports as installed")
