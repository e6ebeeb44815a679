"""Forward passes of a Trainer's model over chosen samples that leave its training as it was.

The Trainer's evaluation dataloader cannot do this (transformers 5.23, accelerate 1.15): with persistent workers one
loader serves all data sets, it may reorder (group_by_length) or drop samples, accelerate keeps every loader that it
prepares, and iterating draws from torch's generator and changes accelerate's gradient state.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hf_pdyn.integrations import own_losses
from hf_pdyn.integrations.packed import document_ids, rows_are_packed
from hf_pdyn.integrations.transformers import shards_every_parameter
from hf_pdyn.tensors.rng import apart
from hf_pdyn.tensors.sharding import has_fsdp1, is_dtensor

_POSITIONS = ("start_positions", "end_positions")
"""The labels of extractive question answering."""
_SEED = 0
"""Seeds what a collator or data set draws (masked tokens, crops), so that every epoch and run draws the same."""


def data_sets(trainer: Any) -> dict[str, Any]:
    """The data sets by split: train, and test for the evaluation set, or test/NAME for each of several."""
    test = trainer.eval_dataset
    tests = {f"test/{name}": one for name, one in test.items()} if isinstance(test, dict) else {"test": test}
    found = {"train": trainer.train_dataset, **tests}
    return {split: data_set for split, data_set in found.items() if data_set is not None}


def length(data_set: Any) -> int | str:
    """The number of samples of a data set, at least one; or the reason why its samples have no index."""
    if isinstance(data_set, IterableDataset) or not (hasattr(data_set, "__len__") and hasattr(data_set, "__getitem__")):
        return f"{type(data_set).__name__} is read in order only: its samples have no index"
    try:
        return len(data_set) or "it is empty"
    except Exception as error:
        return f"it does not tell its length ({type(error).__name__}: {str(error)[:200]})"


def why_not_by_process(trainer: Any) -> str | None:
    """Why the processes cannot each take samples of their own; None where they can."""
    layout = getattr(trainer.accelerator, "parallelism_config", None)
    sizes = [getattr(layout, f"{kind}_size", None) or 1 for kind in ("tp", "cp", "sp")]
    # 5.23 and 5.2; None where a model was not loaded with a plan
    sizes += [getattr(trainer.model, name, None) or 1 for name in ("_tp_size", "tp_size")]
    return "with tensor, context or sequence parallelism several processes share a sample" if max(sizes) > 1 else None


def forwards_together(trainer: Any) -> bool:
    """Whether a forward pass takes every process, because it gathers parameters."""
    sharded = any(is_dtensor(param) for param in trainer.model.parameters()) or has_fsdp1(trainer.model)
    return sharded or (trainer.is_deepspeed_enabled and shards_every_parameter())


def batch_size(trainer: Any, data_set: Any) -> int:
    """How many samples are measured together: as many as the Trainer evaluates, one where its loss or data ask so."""
    alone = own_losses.are_asked(trainer) or rows_are_packed(data_set)
    return 1 if alone else trainer.args.per_device_eval_batch_size


def loader(trainer: Any, data_set: Any, indices: Sequence[Sequence[int]]) -> DataLoader[Any]:
    """Batches of those samples, as the Trainer's data collator makes them."""
    collate = trainer.data_collator
    with contextlib.suppress(Exception):  # what cannot be copied is used as it is
        collate = copy.deepcopy(collate)  # it may hold a generator, whose next numbers are the training's
    asked = copy.copy(trainer)
    asked._signature_columns = None  # axolotl's Trainer (0.19) fails where the columns are known already
    if isinstance(data_set, getattr(sys.modules.get("datasets"), "Dataset", ())):
        data_set = asked._remove_unused_columns(data_set, description="sample losses")
    else:
        collate = asked._get_collator_with_removed_columns(collate, description="sample losses")
    workers = trainer.args.dataloader_num_workers
    return DataLoader(
        data_set,
        batch_sampler=[list(batch) for batch in indices],
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=getattr(trainer.args, "dataloader_multiprocessing_context", None) if workers else None,
        generator=torch.Generator().manual_seed(_SEED),
    )


@contextlib.contextmanager
def evaluating(trainer: Any) -> Iterator[None]:
    """Put the model into evaluation mode without gradients; restore its modes and all generators afterwards."""
    model, optimizer = trainer.model, trainer.optimizer
    training = {module: module.training for module in model.modules()}
    # no_grad, as the Trainer: a tensor that a module keeps from inference_mode can never be part of a backward.
    with apart(_SEED), torch.no_grad():
        try:
            _switch(optimizer, "eval")  # of schedule-free optimizers, which evaluate other weights than they train
            model.eval()
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            _switch(optimizer, "train")


class Outputs(NamedTuple):
    """What a model makes of a batch, and what is right.

    logits: (B, C) or (B, T, V). labels: (B,) or (B, T). documents: (B, T), see `packed.document_ids`.
    """

    logits: Tensor
    labels: Tensor
    documents: Tensor | None


class Answers(NamedTuple):
    """Logits (B, T) of each token as the first and the last one of the answer, and its positions (B,)."""

    start_logits: Tensor
    end_logits: Tensor
    start: Tensor
    end: Tensor


def forward(trainer: Any, batch: Any) -> Outputs | Answers:
    """One forward pass, under the Trainer's autocast as in its evaluation.

    It calls the model itself: DDP's forward would send buffers to the other ranks.

    Raises:
        ValueError: where the batch has no labels, or the model returns no logits.
    """
    inputs = dict(trainer._prepare_inputs(batch))
    names = trainer.label_names
    wanted = _POSITIONS if set(_POSITIONS) <= set(names) else tuple(names)
    labels = [inputs[name] for name in wanted if isinstance(inputs.get(name), Tensor)]
    if len(labels) != len(wanted) or (len(wanted) != 1 and wanted != _POSITIONS):
        raise ValueError(
            f"sample losses need one tensor of labels in a batch, or {' and '.join(_POSITIONS)}; got "
            f"{', '.join(inputs)} where the Trainer's label_names are {', '.join(names) or 'none'}"
        )
    makes_inputs_of_labels = (
        wanted != _POSITIONS and _is_encoder_decoder(trainer.model) and "decoder_input_ids" not in inputs
    )
    if not makes_inputs_of_labels:  # else a loss would be computed, with all logits in float32 at once
        for name in wanted:
            del inputs[name]
    with trainer.compute_loss_context_manager():
        outputs = trainer.model(**inputs)
    if wanted == _POSITIONS:
        return Answers(*_of_answers(trainer, outputs), *labels)
    if isinstance(outputs, dict):
        logits = outputs.get("logits")
    elif isinstance(outputs, tuple):
        logits = outputs[makes_inputs_of_labels]  # behind the loss
    else:
        logits = outputs
    if not isinstance(logits, Tensor):
        raise ValueError(f"sample losses need logits, which {type(trainer.model).__name__} does not return")
    return Outputs(logits, labels[0], document_ids(inputs, labels[0].shape))


def _of_answers(trainer: Any, outputs: Any) -> list[Tensor]:
    names = ("start_logits", "end_logits")
    given = [outputs.get(name) for name in names] if isinstance(outputs, dict) else list(outputs)[:2]
    found = [one for one in given if isinstance(one, Tensor) and one.ndim == 2]
    if len(found) != 2:
        raise ValueError(
            f"sample losses of answers need {' and '.join(names)}, which {type(trainer.model).__name__} does not return"
        )
    return found


def shifts_labels(trainer: Any) -> bool:
    """Whether the logits at one token predict the next: true for models that generate and have no encoder.

    In transformers 5.23 these are the models of its mapping of causal language models, by whose names the Trainer's
    label smoothing decides, with their subclasses and PEFT's wrappers.
    """
    generates = getattr(trainer.model, "can_generate", None)
    return bool(generates and generates()) and not _is_encoder_decoder(trainer.model)


def _is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _switch(optimizer: Any, mode: str) -> None:
    if callable(getattr(optimizer, mode, None)):
        getattr(optimizer, mode)()
