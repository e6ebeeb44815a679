"""A training by ms-swift, by its `sft_main`; writes its log records as JSON. Arguments: FOLDER [MORE OPTIONS]."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.frontend.axolotl_worker import model

PLUGIN = """from hf_pdyn.frontend.ms_swift import register

register(telemetry="layers", p_control="gradient", p_interval=2, sample_losses=9, groups={groups!r})
"""


def main(folder: Path, more: list[str]) -> dict[str, Any]:
    from swift.pipelines import sft_main

    model(folder / "model")
    rows = []
    for i in range(64):
        answer = " ".join(f"w{3 + (i * 7 + j * 3) % 61}" for j in range(5 + i % 9))
        rows.append({"messages": [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": answer}]})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "groups.yaml").write_text("- {name: mlps, match: mlp, lr_mult: 0.5}\n")
    (folder / "pdyn_plugin.py").write_text(PLUGIN.format(groups=str(folder / "groups.yaml")))
    options = {
        "model": folder / "model",
        "model_type": "llama",
        "template": "default",
        "dataset": folder / "data.jsonl",
        "dataset_num_proc": 1,
        "split_dataset_ratio": 0,
        "external_plugins": folder / "pdyn_plugin.py",
        "callbacks": "pdyn",
        "optimizer": "padam",
        "optim_args": "p=0.4,update_scale=adam",
        "tuner_type": "full",
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "bf16": "false",
        "weight_decay": 0.1,
        "learning_rate": 1e-3,
        "max_steps": 8,
        "logging_steps": 2,
        "per_device_train_batch_size": 4,
        "output_dir": folder / "run",
        "add_version": "false",
        "save_strategy": "no",
        "report_to": "none",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    try:
        return {"history": sft_main([*words, *more])["log_history"]}
    except ValueError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), sys.argv[2:])
    Path(sys.argv[1], "result.json").write_text(json.dumps(result))
