"""What `--optim padam` builds: from TrainingArguments to a labelled `Padam`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.trainer_optimizer import OptimizerContext

from hf_pdyn.frontend.optim_args import OptimArgs, Override, apply_overrides, parse_optim_args
from hf_pdyn.grouping import Label, label_parameters, split_groups
from hf_pdyn.integrations.deepspeed import keep_padam_where_it_is_offloaded, want_one_step_for_all_groups
from hf_pdyn.integrations.transformers import make_checkpoints_resumable
from hf_pdyn.optim.padam import Padam
from hf_pdyn.tensors.sharding import declare_fsdp1_shards, is_known_shard

DEFAULT_P = 0.5
"""`--optim padam` alone is AdamW."""


class TrainerPadam(Padam):
    """`Padam` over the Trainer's own groups, each split by label.

    The Trainer decides what decays (a subclass may have its own idea) and which device mesh a parameter
    is on, then hands its groups to the optimizer's class: the first place where both are known.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        names: Mapping[Tensor, str],
        labels: Mapping[str, Label],
        overrides: tuple[Override, ...],
        lr: float,
        p: float,
        **settings: Any,
    ) -> None:
        groups = split_groups(params, names, labels)
        apply_overrides(groups, overrides, lr=lr, p=p)
        super().__init__(groups, lr=lr, p=p, **settings)
        want_one_step_for_all_groups(self)
        keep_padam_where_it_is_offloaded()
        known = {id(param) for param in names}

        def check_once(*_: Any) -> None:
            if known:
                self._check_what_it_steps(known)
                known.clear()

        # Not an override of `step`: torch would run every step hook twice.
        self.register_step_pre_hook(check_once)

    def _check_what_it_steps(self, known: set[int]) -> None:
        """ValueError where a launcher has replaced parameters by parts of which nobody says how they add up."""
        params = (param for group in self.param_groups for param in group["params"])
        if not all(id(param) in known or is_known_shard(param) for param in params):
            self.refuse_parts(
                "this launch has it step parts of parameters that cannot be added up (DeepSpeed without ZeRO, "
                "with offload to NVMe, or ZeRO-1 in bf16 with grad_accum_dtype fp32)",
            )


def labelled_padam(
    model: nn.Module, groups: Iterable[dict[str, Any]], optim_args: OptimArgs, **settings: Any
) -> TrainerPadam:
    """The optimizer that training `model` over the Trainer's `groups` would have."""
    return TrainerPadam(groups, **_labelled_settings(model, optim_args, **settings))


def _labelled_settings(model: nn.Module, optim_args: OptimArgs, **settings: Any) -> dict[str, Any]:
    return {
        "p": DEFAULT_P,
        **settings,
        **optim_args.settings,
        "names": {param: name for name, param in model.named_parameters()},
        "labels": label_parameters(model, rules=optim_args.rules),
        "overrides": optim_args.overrides,
    }


def _inside_the_power(adam_epsilon: float) -> float:
    """Eq. 18's eps = E^2 of Adam's E; positive for every positive E, also where the square underflows."""
    square = adam_epsilon * adam_epsilon
    return max(square, sys.float_info.min) if adam_epsilon else square


def build_for_trainer(context: OptimizerContext) -> tuple[type[Padam], dict[str, Any]]:
    """The Trainer's handler for `optim="padam"`: the optimizer's class and its keyword arguments.

    `--adam_epsilon E` stands outside the root and becomes Eq. 18's eps = E^2, which is inside; an `eps`
    in `optim_args` is Eq. 18's own.
    """
    make_checkpoints_resumable()
    args = context.args
    optim_args = parse_optim_args(args.optim_args)
    settings: dict[str, Any] = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": _inside_the_power(args.adam_epsilon),
    }
    if context.model is not None:
        declare_fsdp1_shards(context.model)  # FSDP1 has wrapped it by now, the others come later
        return TrainerPadam, _labelled_settings(context.model, optim_args, **settings)
    if optim_args.overrides or optim_args.rules:
        raise ValueError(
            "Settings of labels in optim_args need the model to label, got "
            f"{args.optim_args!r}. Call get_optimizer_cls_and_kwargs(args, model)."
        )
    return Padam, {**settings, **optim_args.settings}
