"""A training by axolotl's own functions; prints what came of it as JSON. `python axolotl_worker.py FOLDER OPTIONS`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def model(folder: Path) -> None:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 64)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, **sizes)).save_pretrained(folder)


def config(folder: Path, options: dict[str, Any]) -> str:
    rows = [{"text": " ".join(f"w{3 + (i * 7 + j * 3) % 61}" for j in range(5 + i % 9))} for i in range(64)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {
        "base_model": str(folder / "model"),
        "datasets": [{"path": str(folder / "data.jsonl"), "type": "completion", "ds_type": "json"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 1,
        "output_dir": str(folder / "run"),
        "plugins": ["hf_pdyn.frontend.axolotl.PdynPlugin"],
        "optimizer": "padam",
        "optim_args": {"p": 0.4, "update_scale": "adam"},
        "weight_decay": 0.1,
        "sequence_len": 64,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "save_strategy": "no",
        "val_set_size": 0,
        "bf16": False,
        "tf32": False,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.dump(common | options))
    return str(path)


def main(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    model(folder / "model")
    try:
        cfg = load_cfg(config(folder, options))
    except ValueError as error:
        return {"error": str(error)}
    _, _, trainer = train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))
    groups = [{name: group.get(name) for name in ("name", "pathway", "p")} for group in trainer.optimizer.param_groups]
    return {"trainer": type(trainer).__name__, "history": trainer.state.log_history, "groups": groups}


if __name__ == "__main__":
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    result = main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    Path(sys.argv[1], "result.json").write_text(json.dumps(result))
