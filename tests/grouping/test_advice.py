import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_pdyn.grouping import how_to_train_bias_like, norm_names
from tests.training import gpt2


def test_norms_have_this_model_s_names() -> None:
    assert norm_names(gpt2()) == ["ln_1", "ln_2", "ln_f"]
    advice = 'biases (LoraConfig(bias="all")), norms (modules_to_save=["ln_1", "ln_2", "ln_f"]), or magnitudes'
    assert how_to_train_bias_like(gpt2()).startswith(advice)


def test_a_model_without_biases_is_not_told_to_train_them() -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert how_to_train_bias_like(model) == (
        'norms (modules_to_save=["input_layernorm", "post_attention_layernorm", "norm"]), or magnitudes (use_dora=True)'
    )


def test_a_number_alone_names_no_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2)))
    assert norm_names(model) == ["1.0"]
    assert how_to_train_bias_like(nn.Linear(2, 2, bias=False)) == "magnitudes (use_dora=True)"
