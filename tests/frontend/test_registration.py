import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

import hf_pdyn
from hf_pdyn import Padam, TelemetryCallback
from tests.reference.padam_reference import PadamReference
from tests.training import arguments, gpt2, trainer


def test_importing_again_changes_nothing() -> None:
    members = list(OptimizerNames)
    hf_pdyn.register()
    assert list(OptimizerNames) == members
    assert members.count(OptimizerNames("padam")) == 1
    assert OptimizerNames.PADAM is OptimizerNames("padam") is OptimizerNames["PADAM"]
    assert OptimizerNames.PADAM.name == "PADAM"


def test_import_alone_registers_and_does_nothing_else() -> None:
    code = (
        "import sys; import hf_pdyn, warnings; print('transformers.trainer' in sys.modules);"
        "from transformers import TrainingArguments;"
        "print(TrainingArguments(output_dir='x', optim='padam', use_cpu=True).optim.value);"
        "print('accelerate.accelerator' in sys.modules and getattr("
        "sys.modules['accelerate'].Accelerator.clip_grad_norm_, 'replaced_by_hf_pdyn', False));"
        "import transformers.trainer as t; print(len(t.DEFAULT_CALLBACKS))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "padam", "False", "1"]


def test_arguments_survive_json_and_pickle(tmp_path: Path) -> None:
    args = arguments(tmp_path, optim_args="p=0.25")
    assert json.loads(args.to_json_string())["optim"] == "padam"
    again = pickle.loads(pickle.dumps(args))
    assert again.optim is OptimizerNames.PADAM
    assert again.optim_args == "p=0.25"
    torch.save(args, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).optim is OptimizerNames.PADAM


def test_the_command_line_knows_it() -> None:
    parser = HfArgumentParser(TrainingArguments)
    command = ["--output_dir", "x", "--optim", "padam", "--optim_args", "p=0.1", "--use_cpu"]
    (args,) = parser.parse_args_into_dataclasses(command)
    assert args.optim is OptimizerNames.PADAM
    # The head of --help; transformers 5.2's own help texts end it with a stray "%" further down.
    assert re.search(r"--optim \{[^}]*padam[^}]*\}", parser.format_usage().replace("\n", ""))


def built(tmp_path: Path, **options: Any) -> Padam:
    optimizer = trainer(tmp_path, **options).create_optimizer()
    assert isinstance(optimizer, Padam)
    return optimizer


def test_settings_come_from_training_arguments(tmp_path: Path) -> None:
    optimizer = built(
        tmp_path,
        learning_rate=3e-4,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        weight_decay=0.1,
        optim_args="p=0.25, update_scale=adam, amsgrad=true, decoupled_weight_decay=false",
    )
    for group in optimizer.param_groups:
        assert group["lr"] == 3e-4
        assert group["betas"] == (0.8, 0.95)
        assert group["eps"] == pytest.approx(1e-12)  # Adam's stands outside the root, Eq. 18's inside the power
        assert (group["p"], group["update_scale"]) == (0.25, "adam")
        assert group["amsgrad"]
        assert not group["decoupled_weight_decay"]
        assert group["weight_decay"] == (0.1 if group["pathway"] == "weight" else 0.0)


def test_how_states_are_stored_comes_from_optim_args(tmp_path: Path) -> None:
    model = gpt2().to(torch.bfloat16)
    optimizer = built(tmp_path, model=model, optim_args="state_dtype=16bit, weight_correction=true")
    for group in optimizer.param_groups:
        assert (group["state_dtype"], group["weight_correction"]) == ("16bit", True)
    with pytest.raises(ValueError, match="keeps what rounding leaves of bf16 and fp16 parameters, got torch.float32"):
        built(tmp_path, optim_args="weight_correction=true")


def test_eps_in_optim_args_is_eq_18_s(tmp_path: Path) -> None:
    assert {group["eps"] for group in built(tmp_path, optim_args="eps=1e-5").param_groups} == {1e-5}


@pytest.mark.parametrize("adam_epsilon", [1e-23, 1e-200])
def test_an_adam_epsilon_whose_square_float32_cannot_hold_still_keeps_zero_gradients_from_nan(
    tmp_path: Path, adam_epsilon: float
) -> None:
    with pytest.warns(UserWarning, match="eps.*float32") as warned:
        optimizer = built(tmp_path, adam_epsilon=adam_epsilon)
    assert len({str(warning.message) for warning in warned}) == 1
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(param.isfinite().all() for group in optimizer.param_groups for param in group["params"])


def test_alone_it_is_adamw(tmp_path: Path) -> None:
    """--optim padam without arguments: the losses of adamw_torch over a whole run, to rounding (see Padam)."""
    padam = trainer(tmp_path, logging_steps=1, max_steps=24, weight_decay=0.1)
    adamw = trainer(tmp_path, logging_steps=1, max_steps=24, weight_decay=0.1, optim="adamw_torch")
    losses = []
    for run in (padam, adamw):
        run.train()
        losses.append([record["loss"] for record in run.state.log_history if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    compared = 0
    for a, b in zip(padam.model.parameters(), adamw.model.parameters(), strict=True):
        clear = adamw.optimizer.state[b]["exp_avg_sq"].sqrt() > 1e3 * 1e-8  # where sqrt(v) >> E
        torch.testing.assert_close(a[clear], b[clear], rtol=1e-4, atol=5e-5)  # 24 updates of lr, each off by E/sqrt(v)
        compared += int(clear.sum())
    assert compared > 0.5 * sum(param.numel() for param in padam.model.parameters())


def test_overrides_reach_the_groups(tmp_path: Path) -> None:
    optimizer = built(
        tmp_path,
        weight_decay=0.01,
        optim_args="p=0.25, p.bias_like=0.1, p.norm=0, weight_decay.attention=0.2, lr_mult.mlp=4",
    )
    by_label = {(group["pathway"], group["component"]): group for group in optimizer.param_groups}
    assert by_label["weight", "attention"]["p"] == 0.25
    assert by_label["bias_like", "attention"]["p"] == 0.1
    assert by_label["bias_like", "norm"]["p"] == 0  # a component outranks a pathway
    assert by_label["weight", "attention"]["weight_decay"] == 0.2
    assert by_label["bias_like", "attention"]["weight_decay"] == 0  # of a component, its weights are meant
    assert by_label["weight", "mlp"]["weight_decay"] == 0.01
    assert by_label["bias_like", "mlp"]["lr"] == pytest.approx(4e-3)
    assert by_label["weight", "attention"]["lr"] == 1e-3


def test_rules_in_optim_args_relabel(tmp_path: Path) -> None:
    optimizer = built(tmp_path, optim_args="label.wpe=bias_like/embedding")
    group = next(g for g in optimizer.param_groups if (g["pathway"], g["component"]) == ("bias_like", "embedding"))
    assert group["param_names"] == ["transformer.wpe.weight"]


def test_a_subclass_decides_what_decays(tmp_path: Path) -> None:
    class EverythingDecays(Trainer):
        def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
            return [name for name, _ in model.named_parameters()]

    optimizer = built(tmp_path, weight_decay=0.1, trainer_class=EverythingDecays)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}


def test_every_parameter_is_in_one_group_and_none_is_empty(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = built(tmp_path, model=model)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(group["params"] for group in optimizer.param_groups)


BAD_OPTIM_ARGS = [
    ("pp=0.3", "Unknown key 'pp' in optim_args. Known are p, eps, update_scale.*Did you mean 'p'"),
    ("p=much", "optim_args p must be a finite number, got 'much'"),
    ("eps=-1", "optim_args eps must be >= 0, got -1"),
    ("amsgrad=maybe", "optim_args amsgrad must be true or false, got 'maybe'"),
    ("update_scale=adamm", "must be one of raw, adam, got 'adamm'. Did you mean 'adam'?"),
    ("p.nrom=0", "Unknown label 'nrom' in optim_args 'p.nrom'.*Did you mean 'norm'?"),
    ("p.lora_A=0", "optim_args p.lora_A=0: .*lora_A"),
    ("lr.norm=2", "Unknown key 'lr.norm'.*lr_mult.LABEL"),
    ("p=0.1,p=0.2", "sets 'p' twice"),
    ("betas=0.9", "Unknown key 'betas'.*come from TrainingArguments"),
    ("label.nothing_here=weight/mlp", "nothing_here"),
    ("label.wpe=weight/mpl", "mpl"),
]


@pytest.mark.parametrize(("text", "message"), BAD_OPTIM_ARGS)
def test_bad_optim_args(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, optim_args=text).create_optimizer()


@pytest.mark.parametrize(
    ("text", "item"), [("p", "p"), ("p=0.4,", ""), ("p=0.4, p.norm", "p.norm"), ("p=0=1", "p=0=1")]
)
def test_what_the_trainer_cannot_split_is_named_when_it_is_built(tmp_path: Path, text: str, item: str) -> None:
    with pytest.raises(ValueError, match=f"key=value.*'{item}'.*'{text}'"):
        trainer(tmp_path, optim_args=text, callbacks=[TelemetryCallback()])


def test_without_a_model_there_are_no_labels(tmp_path: Path) -> None:
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments(tmp_path, optim_args="p=0.1"))
    optimizer = cls(gpt2().parameters(), **settings)
    assert optimizer.param_groups[0]["p"] == 0.1
    with pytest.raises(ValueError, match="need the model to label, got 'p.norm=0'"):
        Trainer.get_optimizer_cls_and_kwargs(arguments(tmp_path, optim_args="p.norm=0"))


def test_a_trainer_run_equals_a_loop_with_the_scalar_reference(tmp_path: Path) -> None:
    """Stock Trainer, p=0.25, 20 steps in float32, against Eq. 18 in Python floats: relative error 1e-5."""
    steps, lr = 20, 0.02
    torch.manual_seed(0)
    data = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(16)]
    linear = _Linear()
    reference = PadamReference([*linear.layer.weight.flatten().tolist(), *linear.layer.bias.tolist()], lr=lr, p=0.25)
    run = Trainer(
        model=linear,
        args=arguments(
            tmp_path,
            learning_rate=lr,
            max_steps=steps,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            optim_args="p=0.25",
        ),
        train_dataset=data,
    )
    order: list[torch.Tensor] = []
    linear.seen = order
    run.train()

    for batch in order:
        theta = torch.tensor(reference.theta, dtype=torch.float64, requires_grad=True)
        x, y = batch[:, :3].double(), batch[:, 3:].double()
        loss = (x @ theta[:3, None] + theta[3] - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        reference.step(gradient.tolist())
    assert len(order) == steps
    ours = torch.cat([linear.layer.weight.flatten(), linear.layer.bias]).double()
    torch.testing.assert_close(ours, torch.tensor(reference.theta, dtype=torch.float64), rtol=1e-5, atol=0)


class _Linear(torch.nn.Module):
    """y = Wx + b with the batches it was given on record."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(torch.cat([x, labels], dim=1))
        prediction = self.layer(x)
        return {"loss": (prediction - labels).square().mean(), "logits": prediction}


def test_hyperparameter_search_tries_exponents(tmp_path: Path) -> None:
    telemetry = hf_pdyn.TelemetryCallback()
    search = trainer(tmp_path, max_steps=4, eval_strategy="no", callbacks=[telemetry])
    search.model_init = lambda trial: gpt2()
    seen = []

    def space(trial: Any) -> dict[str, Any]:
        text = trial.suggest_categorical("optim_args", ["p=0.0", "p=0.25", "p=0.5"])
        return {"optim_args": text}

    class Seen(hf_pdyn.TelemetryCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((args.optim_args, state.log_history[0]["pdyn/p"]))

    search.add_callback(Seen())
    search.hyperparameter_search(
        space, n_trials=4, backend="optuna", compute_objective=lambda metrics: metrics.get("eval_loss", 1.0)
    )
    assert len(seen) == 4
    for text, p in seen:
        assert re.fullmatch(rf"p={p}", text)
