"""Fine-tune a causal language model with LoRA and padam.

    python recipes/gpt2_lora.py
    python recipes/gpt2_lora.py --config recipes/configs/gpt2_lora.yaml --max_steps 100
    accelerate launch recipes/gpt2_lora.py --model_name_or_path gpt2 --train_file my.txt

With no option it needs no network: it pretrains a small GPT-2 on the prose that Python ships
(once, about a minute), then adapts it to the plays in `recipes/data`.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
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
)

from _common.entry_point import RecipeError, run_recipe
from _common.lora import TaskType, add_lora
from _common.pretrained import PretrainingSettings, pydoc_checkpoint
from _common.run import (
    TRAINING_DEFAULTS,
    CheckpointArguments,
    begin,
    check_data_options,
    loading,
    refuse_divergence,
    save_outputs,
)
from _common.summary import logged_before, print_paths, print_table, results_of, write_summary
from _common.text_data import (
    Corpus,
    TokenBlocks,
    hub_dataset,
    plays,
    text_files,
    train_and_validation,
)

DEFAULTS: dict[str, Any] = {
    **TRAINING_DEFAULTS,
    "output_dir": "runs/gpt2_lora",
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
}


@dataclass
class ModelArguments(CheckpointArguments):
    """What is trained, and what it writes at the end."""

    pretrain_steps: int = field(
        default=PretrainingSettings.steps,
        metadata={"help": "Steps of pretraining of the default model."},
    )
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

    def __post_init__(self) -> None:
        blocks = {"max_train_blocks": self.max_train_blocks, "max_validation_blocks": self.max_validation_blocks}
        check_data_options(self.validation_fraction, **blocks)


def main() -> None:
    """Load, measure, train, measure, save, tell."""
    started = time.perf_counter()
    options = begin(__doc__, ModelArguments, DataArguments, DEFAULTS)

    model, tokenizer = load_model(options.model, options.training)
    train_blocks, validation_blocks = load_blocks(options.data, tokenizer, model)
    set_seed(options.training.seed)
    if not options.model.full_finetune:
        model = add_lora(model, options.lora, TaskType.CAUSAL_LM)
    trainer = Trainer(
        model=model,
        args=options.training,
        train_dataset=train_blocks,
        eval_dataset=validation_blocks,
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=options.pdyn.callbacks(),
    )

    training = trainer.train(resume_from_checkpoint=options.checkpoint)
    perplexity_after = perplexity(trainer.evaluate()["eval_loss"])

    paths = save_outputs(trainer, options.model.trained)
    sample = generate_sample(trainer, tokenizer, options.model, validation_blocks)
    if trainer.is_world_process_zero():
        loss_before = logged_before(trainer, "eval_loss")
        results = {
            "perplexity before": None if loss_before is None else perplexity(loss_before),
            "perplexity after": perplexity_after,
            **results_of(trainer, training.metrics["train_runtime"]),
            "total seconds": time.perf_counter() - started,
        }
        write_summary(paths["summary"], results, paths, sample=sample)
        print_results(options.console, results, sample, paths)
    refuse_divergence("validation perplexity", perplexity_after)


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
    with loading(source, "a causal language model"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source)
        # The loss it takes anyway. Unsaid, transformers 5.23 warns, and its Trainer divides by all labels of a row, the
        # first one too, which nothing predicts.
        model.loss_type = "ForCausalLM"
    return model, tokenizer


def default_checkpoint(options: ModelArguments, training_options: TrainingArguments) -> Path:
    """Return the checkpoint that needs no network."""
    return pydoc_checkpoint(
        PretrainingSettings(steps=options.pretrain_steps),
        options.cache_path,
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


if __name__ == "__main__":
    run_recipe(main)
