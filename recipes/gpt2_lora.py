"""Fine-tune a causal language model with LoRA and padam.

    python recipes/gpt2_lora.py
    python recipes/gpt2_lora.py --config recipes/configs/gpt2_lora.yaml --max_steps 100
    accelerate launch recipes/gpt2_lora.py --model_name_or_path gpt2 --train_file my.txt

With no option it needs no network: it pretrains a small GPT-2 on the prose that Python ships
(once, about a minute), then adapts it to the plays in `recipes/data`.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
    trainer_utils,
)
from transformers.integrations import TensorBoardCallback, is_tensorboard_available

from _common.config_file import RecipeParser
from _common.entry_point import RecipeError, run_recipe
from _common.lora import LoraArguments, add_lora, count_parameters
from _common.pretrained import PretrainingSettings, pydoc_checkpoint
from _common.summary import last_logged, print_paths, print_table, write_json_atomically
from _common.text_data import (
    Corpus,
    TokenBlocks,
    hub_dataset,
    plays,
    text_files,
    train_and_validation,
)
from hf_pdyn import PdynArguments

DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/gpt2_lora",
    "optim": "padam",
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "eval_strategy": "epoch",
    # For the perplexity before training. An evaluate() before train() would leave the model unwrapped: processes would
    # train on their own (transformers 5.23, DDP), or stop (DeepSpeed).
    "eval_on_start": True,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "tensorboard" if is_tensorboard_available() else "none",
    # Pinning memory with no accelerator to copy to is a warning from torch.
    "dataloader_pin_memory": torch.accelerator.is_available(),
}

FINAL_METRICS = {
    "final p": "pdyn/p",
    "final D_w": "pdyn/D_w",
    "final D_b": "pdyn/D_b",
    "final G_w/G_b": "pdyn/G_w_over_G_b",
    "non-finite steps": "pdyn/nonfinite_steps",
}


@dataclass
class ModelArguments:
    """What is trained, and what it writes at the end."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub name or directory; by default a small GPT-2 that is made here."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where the default model is kept; by default ~/.cache/hf_pdyn."},
    )
    pretrain_steps: int = field(
        default=PretrainingSettings.steps,
        metadata={"help": "Steps of pretraining of the default model."},
    )
    full_finetune: bool = field(default=False, metadata={"help": "Train every parameter; no adapter."})
    prompt: str | None = field(
        default=None,
        metadata={"help": "Start of the sample; by default the start of the validation text."},
    )
    sample_tokens: int = field(default=80, metadata={"help": "Tokens to generate at the end; 0 generates none."})


@dataclass
class DataArguments:
    """Where the text comes from; with no source given, the plays in `recipes/data`."""

    train_file: str | None = field(default=None, metadata={"help": "Text file to train on."})
    validation_file: str | None = field(
        default=None, metadata={"help": "Text file to validate on; goes with --train_file."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Hub name or directory of a dataset."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    text_column: str = field(default="text", metadata={"help": "Column of its text."})
    block_size: int = field(default=128, metadata={"help": "Tokens in a training example."})
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share held out at the end, where the data brings no validation text."},
    )
    max_train_blocks: int | None = field(default=None, metadata={"help": "Use the first N training blocks only."})
    max_validation_blocks: int | None = field(
        default=None, metadata={"help": "Use the first N validation blocks only."}
    )


def main() -> None:
    """Load, measure, train, measure, save, tell."""
    started = time.perf_counter()
    parser = RecipeParser(
        (ModelArguments, DataArguments, LoraArguments, TrainingArguments, PdynArguments),
        defaults=DEFAULTS,
        description=__doc__.partition("\n")[0],
        usage="%(prog)s [--config FILE] [--option VALUE ...]",
    )
    model_options, data_options, lora_options, training_options, pdyn_options = parser.parse()
    is_main = training_options.process_index == 0
    pdyn_options.check(training_options)
    checkpoint = checkpoint_to_resume(training_options)
    logging.getLogger("hf_pdyn").setLevel(logging.INFO if is_main else logging.WARNING)
    console = Console(quiet=not is_main)

    model, tokenizer = load_model(model_options, training_options)
    train_blocks, validation_blocks = load_blocks(data_options, tokenizer, model)
    set_seed(training_options.seed)
    if not model_options.full_finetune:
        model = add_lora(model, lora_options, TaskType.CAUSAL_LM)
    trainer = Trainer(
        model=model,
        args=training_options,
        train_dataset=train_blocks,
        eval_dataset=validation_blocks,
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=pdyn_options.callbacks(),
    )

    training = trainer.train(resume_from_checkpoint=checkpoint)
    perplexity_after = perplexity(trainer.evaluate()["eval_loss"])

    paths = save_outputs(trainer, "model" if model_options.full_finetune else "adapter")
    sample = generate_sample(trainer, tokenizer, model_options, validation_blocks)
    if is_main:
        results = results_of(trainer, perplexity_after, training.metrics["train_runtime"])
        results["total seconds"] = time.perf_counter() - started
        write_summary(paths["summary"], results, sample, paths)
        print_results(console, results, sample, paths)
    if not math.isfinite(perplexity_after):
        raise RecipeError(
            f"training diverged: the validation perplexity is {perplexity_after}; lower --learning_rate or p, or set"
            " update_scale=adam in --optim_args"
        )


def results_of(trainer: Trainer, perplexity_after: float, training_seconds: float) -> dict[str, Any]:
    """Return the numbers of the summary, by the names it shows."""
    trained, total = count_parameters(trainer.model)
    history = trainer.state.log_history
    # A resumed run has it from its checkpoint.
    losses_before = [record["eval_loss"] for record in history if record["step"] == 0 and "eval_loss" in record]
    # The Trainer's closing record is about the few steps since the one before.
    records = [record for record in history if "loss" in record] or history
    return {
        "perplexity before": perplexity(losses_before[0]) if losses_before else None,
        "perplexity after": perplexity_after,
        **{name: last_logged(records, key) for name, key in FINAL_METRICS.items()},
        "trainable parameters": trained,
        "all parameters": total,
        "processes": trainer.args.world_size,
        "optimizer steps": trainer.state.global_step,
        "training seconds": training_seconds,
    }


def print_results(console: Console, results: dict[str, Any], sample: str | None, paths: dict[str, Path]) -> None:
    """Show what a person wants to see last."""
    if sample is not None:
        console.print("Sample", style="bold")
        console.print(sample, markup=False, highlight=False)
    print_table(console, "Summary", results)
    print_paths(console, paths)


def load_model(
    options: ModelArguments, training_options: TrainingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer; the default model is made where it is not cached."""
    source = options.model_name_or_path
    if source is None:
        with training_options.main_process_first(desc="pretraining"):
            source = default_checkpoint(options, training_options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--model_name_or_path must be a causal language model on the hub or in a directory,"
            f" got {str(source)!r} ({str(error).splitlines()[0]}); leave the option out for the"
            " model that needs no network"
        ) from error
    return model, tokenizer


def default_checkpoint(options: ModelArguments, training_options: TrainingArguments) -> Path:
    """Return the checkpoint that needs no network."""
    return pydoc_checkpoint(
        PretrainingSettings(steps=options.pretrain_steps),
        None if options.cache_dir is None else Path(options.cache_dir).expanduser(),
        training_options.device,
        show_progress=not training_options.disable_tqdm,
    )


def load_blocks(
    options: DataArguments, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> tuple[TokenBlocks, TokenBlocks]:
    """Return the training and the validation blocks."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and options.block_size > longest:
        raise RecipeError(
            f"--block_size must not exceed the model's {longest} positions,"
            f" got {options.block_size}; take {longest} or less"
        )
    train, validation = train_and_validation(
        corpus_of(options), tokenizer, options.block_size, options.validation_fraction
    )
    return train.first(options.max_train_blocks), validation.first(options.max_validation_blocks)


def corpus_of(options: DataArguments) -> Corpus:
    """Return the text of the one source that the options name."""
    if options.train_file is not None and options.dataset_name is not None:
        raise RecipeError(
            f"--train_file and --dataset_name exclude each other, got {options.train_file!r} and"
            f" {options.dataset_name!r}; give one of them"
        )
    if options.validation_file is not None and options.train_file is None:
        raise RecipeError(f"--validation_file goes with --train_file, got {options.validation_file!r} alone; give both")
    if options.train_file is not None:
        return text_files(options.train_file, options.validation_file)
    if options.dataset_name is not None:
        return hub_dataset(options.dataset_name, options.dataset_config_name, options.text_column)
    return plays()


def perplexity(loss: float) -> float:
    """Return exp of a mean loss, infinite where that is no float any more."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def checkpoint_to_resume(options: TrainingArguments) -> str | None:
    """Return the checkpoint that ``--resume_from_checkpoint`` means; ``auto`` takes the newest."""
    wanted = options.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted == "auto":
        exists = Path(options.output_dir).is_dir()
        return trainer_utils.get_last_checkpoint(options.output_dir) if exists else None
    if not Path(wanted).is_dir():
        raise RecipeError(f"--resume_from_checkpoint must be a checkpoint directory or 'auto', got {wanted!r}")
    return wanted


def save_outputs(trainer: Trainer, model_directory: str) -> dict[str, Path]:
    """Save what was trained and the Trainer's state; return where everything lies."""
    output_dir = Path(trainer.args.output_dir).resolve()
    paths = {model_directory: output_dir / model_directory}
    trainer.save_model(str(paths[model_directory]))
    trainer.save_state()
    checkpoints = {int(path.name.rpartition("-")[2]): path for path in output_dir.glob("checkpoint-*")}
    for step in sorted(step for step in checkpoints if step <= trainer.state.global_step):
        paths[checkpoints[step].name] = checkpoints[step]
    paths["trainer state"] = output_dir / "trainer_state.json"
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is not None:
            paths["tensorboard"] = Path(callback.logging_dir).resolve()
    paths["summary"] = output_dir / "summary.json"
    return paths


@torch.no_grad()
def generate_sample(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    options: ModelArguments,
    validation_blocks: TokenBlocks,
) -> str | None:
    """Continue the prompt on the main process; None where nobody holds the whole model."""
    zero = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    is_sharded = trainer.is_fsdp_enabled or (zero is not None and zero.zero_stage == 3)
    if options.sample_tokens == 0 or is_sharded or not trainer.is_world_process_zero():
        return None
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    if options.prompt is None:
        prompt = validation_blocks[0]["input_ids"][:16].unsqueeze(0)
    else:
        prompt = tokenizer(options.prompt, return_tensors="pt")["input_ids"]
    prompt = prompt.to(model.device)
    set_seed(trainer.args.seed)
    tokens = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=options.sample_tokens,
        do_sample=True,
        temperature=0.8,
        top_k=50,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def write_summary(path: Path, results: dict[str, Any], sample: str | None, paths: dict[str, Path]) -> None:
    """Write the numbers, the sample and the paths for programs, with keys free of blanks."""
    numbers = {name.replace(" ", "_").replace("/", "_over_"): v for name, v in results.items()}
    outputs = {name.replace(" ", "_"): str(location) for name, location in paths.items()}
    write_json_atomically(path, {**numbers, "sample": sample, "outputs": outputs})


if __name__ == "__main__":
    run_recipe(main)
