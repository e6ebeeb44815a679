"""LoRA whose trainable set has both of the paper's pathways: matrices, and biases with norms."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_pdyn.common.errors import nearest
from hf_pdyn.grouping import norm_names

from .entry_point import RecipeError

# Vision transformers of transformers 5.2 have the first three names, those of 5.23 the others.
_QUERY_KEY_VALUE = r".*\.(query|key|value|[qkv]_proj)"
ATTENTION_PROJECTIONS = {
    # The MLP has a `c_proj` too, hence the parent's name.
    "gpt2": r".*\.attn\.(c_attn|c_proj)",
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov2_with_registers"), _QUERY_KEY_VALUE),
}


@dataclass
class LoraArguments:
    """The adapter."""

    lora_r: int = field(default=8, metadata={"help": "Rank of each adapter."})
    lora_alpha: float = field(default=16, metadata={"help": "Adapters are scaled by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before each adapter."})
    target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules that get an adapter: ends of names, or one regular expression over"
            " full names. By default the attention projections."
        },
    )

    def __post_init__(self) -> None:
        if self.lora_r < 1:
            raise RecipeError(f"--lora_r must be at least 1, got {self.lora_r}; 8 is usual")
        if self.lora_alpha <= 0:
            raise RecipeError(f"--lora_alpha must be above 0, got {self.lora_alpha}; 16 is usual")
        if not 0 <= self.lora_dropout < 1:
            raise RecipeError(f"--lora_dropout must be a share from 0 to below 1, got {self.lora_dropout}; 0 is usual")


def add_lora(
    model: PreTrainedModel, options: LoraArguments, task_type: TaskType | None, heads: Collection[str] = ()
) -> PeftModel:
    """Wrap a model: adapters on the target modules; every bias, every norm and the ``heads`` train as well.

    Plain LoRA trains no bias-like parameter, and Algorithm 1 compares their gradients with the
    matrices'.
    """
    targets = _target_modules(model, options.target_modules)
    # Read now: where peft refuses, it may have put adapters into the model already.
    advice = _advice(model, options.target_modules)
    try:
        return get_peft_model(
            model,
            LoraConfig(
                task_type=task_type,
                r=options.lora_r,
                lora_alpha=options.lora_alpha,
                lora_dropout=options.lora_dropout,
                target_modules=targets,
                fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
                bias="all",
                modules_to_save=[*norm_names(model), *heads],
            ),
        )
    except ValueError as error:
        raise RecipeError(
            f"--target_modules must match modules of the model, got {targets!r} ({_first_sentence(error)}); {advice}"
        ) from error


def trainable_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that the optimizer will get."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many numbers train, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def _target_modules(model: PreTrainedModel, given: list[str] | None) -> str | list[str] | None:
    """Return what peft expects: a pattern as text, name ends as a list, None for its own table."""
    if given is None:
        return ATTENTION_PROJECTIONS.get(model.config.model_type)
    if len(given) == 1 and not re.fullmatch(r"[\w.]+", given[0]):
        return given[0]
    return given


def _advice(model: nn.Module, given: list[str] | None) -> str:
    names = sorted(
        {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    )
    near = nearest(given[0], names, n=1) if given else []
    return f"try {near[0]!r}" if near else f"its matrices are named {', '.join(names)}"


def _first_sentence(error: ValueError) -> str:
    return re.split(r"\.\s", str(error))[0].rstrip(".")
