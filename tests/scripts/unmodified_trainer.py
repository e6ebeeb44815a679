"""A user's script: it knows the Trainer and has never heard of hf_pdyn."""

import json
import os
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments


def main() -> None:
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=32))
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(32, (64, 8))]
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=bool(args.resume_from_checkpoint))
    if trainer.is_world_process_zero():
        report = {
            "argv": sys.argv,
            "name": __name__,
            "optimizer": type(trainer.optimizer.optimizer).__name__,
        }
        with open(os.path.join(args.output_dir, "report.json"), "w") as file:
            json.dump(report, file)


if __name__ == "__main__":
    main()
