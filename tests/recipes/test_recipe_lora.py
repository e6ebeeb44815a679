from pathlib import Path

import pytest
import torch
from peft import PeftModel, TaskType
from transformers import GPT2Config, GPT2LMHeadModel

from _common.entry_point import RecipeError
from _common.lora import LoraArguments, add_lora, count_parameters, norm_names, trainable_names

# peft 0.18 looks for the base model's configuration when it saves, and a model made here has none on disk.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40, n_layer=1, n_embd=16, n_head=2, n_positions=32,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def test_what_trains_is_adapters_biases_and_norms_and_nothing_dead() -> None:
    model = add_lora(tiny_gpt2(), LoraArguments(), TaskType.CAUSAL_LM)
    block = "base_model.model.transformer.h.0"
    assert sorted(trainable_names(model)) == sorted(
        [
            f"{block}.attn.c_attn.base_layer.bias",
            f"{block}.attn.c_attn.lora_A.default.weight",
            f"{block}.attn.c_attn.lora_B.default.weight",
            f"{block}.attn.c_proj.base_layer.bias",
            f"{block}.attn.c_proj.lora_A.default.weight",
            f"{block}.attn.c_proj.lora_B.default.weight",
            f"{block}.ln_1.modules_to_save.default.bias",
            f"{block}.ln_1.modules_to_save.default.weight",
            f"{block}.ln_2.modules_to_save.default.bias",
            f"{block}.ln_2.modules_to_save.default.weight",
            f"{block}.mlp.c_fc.bias",
            f"{block}.mlp.c_proj.bias",
            "base_model.model.transformer.ln_f.modules_to_save.default.bias",
            "base_model.model.transformer.ln_f.modules_to_save.default.weight",
        ]
    )
    tokens = torch.arange(20).view(2, 10)
    model(input_ids=tokens, labels=tokens).loss.backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert dead == []
    trained, total = count_parameters(model)
    assert 0 < trained < total


def test_a_trained_adapter_survives_saving(tmp_path: Path) -> None:
    model = add_lora(tiny_gpt2(), LoraArguments(lora_r=2), TaskType.CAUSAL_LM)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter))
    tokens = torch.arange(20).view(2, 10)
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path).eval()
        torch.testing.assert_close(loaded(input_ids=tokens).logits, expected, rtol=0, atol=0)


def test_norms_are_found_by_type() -> None:
    assert norm_names(tiny_gpt2()) == ["ln_1", "ln_2", "ln_f"]


@pytest.mark.parametrize(
    ("given", "adapted"),
    [(["c_fc"], {"mlp.c_fc"}), ([r".*\.mlp\.c_.*"], {"mlp.c_fc", "mlp.c_proj"})],
)
def test_targets_are_name_ends_or_one_pattern(given: list[str], adapted: set[str]) -> None:
    model = add_lora(tiny_gpt2(), LoraArguments(target_modules=given), TaskType.CAUSAL_LM)
    names = {n.split("h.0.")[1].split(".lora_A")[0] for n in trainable_names(model) if "lora_A" in n}
    assert names == adapted


def test_a_target_that_matches_nothing_names_the_nearest() -> None:
    options = LoraArguments(target_modules=["c_atn"])
    with pytest.raises(RecipeError, match=r"--target_modules.*got \['c_atn'\].*try 'c_attn'"):
        add_lora(tiny_gpt2(), options, TaskType.CAUSAL_LM)


def test_a_rank_of_zero_is_not_blamed_on_the_targets() -> None:
    with pytest.raises(RecipeError, match="--lora_r"):
        add_lora(tiny_gpt2(), LoraArguments(lora_r=0), TaskType.CAUSAL_LM)
