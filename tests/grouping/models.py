"""Tiny models for the tables, built from configurations, and stand-ins for what is not installed."""

import warnings

import peft
import torch
import transformers as hf
from torch import nn

_TEXT = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
_VISION = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
_GPT2 = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 11, "n_positions": 8}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_CONVNEXT = {"depths": [1, 1], "hidden_sizes": [4, 8], "num_stages": 2, "patch_size": 2}

# What the libraries warn of while they build and wrap, none of it ours.
_LIBRARY_WARNINGS = (
    "`is_gradient_checkpointing` is deprecated",  # PEFT 0.21 asks transformers 5.23 for it
    "`lora_bias=True` was passed but the targeted layer",
    "`torch.jit.script_method` is deprecated",  # torch.compile of torch 2.13, on its own import
)


def quietly(make, *args):
    """`make(*args)` without the warnings that are known to be the libraries' own."""
    with warnings.catch_warnings():
        for message in _LIBRARY_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        return make(*args)


def build(name):
    """The model that the function `name` of this module makes."""
    return quietly(globals()[name])


def gpt2():
    return hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2))


def gpt2_classifier():
    return hf.GPT2ForSequenceClassification(hf.GPT2Config(**_GPT2, num_labels=2))


def vit():
    return hf.ViTForImageClassification(hf.ViTConfig(**_VISION, intermediate_size=16, num_labels=3))


def llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT))


def bert_classifier():
    return hf.BertForSequenceClassification(hf.BertConfig(**_TEXT, max_position_embeddings=8))


def bert_mlm():
    return hf.BertForMaskedLM(hf.BertConfig(**_TEXT, max_position_embeddings=8))


def resnet():
    return hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1]))


def convnext():
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(**_CONVNEXT))


def convnextv2():
    one_stage = {"depths": [1], "hidden_sizes": [4], "num_stages": 1, "patch_size": 2}
    return hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(**one_stage))


def dinov2():
    return hf.Dinov2ForImageClassification(hf.Dinov2Config(**_VISION, mlp_ratio=2, num_labels=3))


def opt():
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "word_embed_proj_dim": 8, "num_attention_heads": 2}
    return hf.OPTForCausalLM(hf.OPTConfig(**sizes, ffn_dim=16, vocab_size=11, max_position_embeddings=8))


def t5():
    sizes = {"num_layers": 1, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "vocab_size": 11}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes))


def _lora(model, targets, **settings):
    settings = {"r": 2, "target_modules": targets, "fan_in_fan_out": True} | settings
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def gpt2_lora(**settings):
    return _lora(gpt2(), ["c_attn", "c_proj"], **settings)


def gpt2_rslora():
    return gpt2_lora(use_rslora=True)


def gpt2_dora():
    return _lora(gpt2(), ["c_attn", "c_fc"], use_dora=True)


def gpt2_ia3():
    targets = {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}
    return peft.get_peft_model(gpt2(), peft.IA3Config(**targets, fan_in_fan_out=True))


def gpt2_modules_to_save():
    return _lora(gpt2_classifier(), ["c_attn"], modules_to_save=["ln_1", "ln_2", "ln_f", "score"])


def gpt2_bias_lora_only():
    return _lora(gpt2(), ["c_attn"], bias="lora_only")


def gpt2_bias_all():
    return _lora(gpt2(), ["c_attn"], bias="all")


def gpt2_embedding_dora():
    return _lora(gpt2(), ["wte"], use_dora=True, fan_in_fan_out=False)


def gpt2_trainable_tokens():
    return _lora(gpt2(), ["c_attn"], trainable_token_indices={"wte": [1, 2]})


def llama_lora_bias():
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)
    return peft.get_peft_model(llama(), config, adapter_name="mlp")


def vit_lora():
    settings = {"target_modules": ["projection"], "modules_to_save": ["classifier"]}
    return peft.get_peft_model(vit(), peft.LoraConfig(r=2, use_dora=True, **settings))


class Holder(nn.Module):
    """A module of given children and nothing else; subclass it for its class's name."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def named(class_name, **children):
    """A module of a class called `class_name`."""
    return type(class_name, (Holder,), {})(**children)


def wrap_like_ddp(model):
    return named("Anything", module=model)


def wrap_by_compile(model):
    return quietly(torch.compile, model)


def wrap_twice(model):
    return wrap_by_compile(wrap_like_ddp(model))


def wrap_like_fsdp1(model):
    """Every block, and the model itself, behind `_fsdp_wrapped_module`."""
    for parent in list(model.modules()):
        for attribute, child in list(parent.named_children()):
            if type(child).__name__.endswith(("Block", "Layer", "Attention", "MLP", "Linear", "LayerNorm")):
                setattr(parent, attribute, named("FullyShardedDataParallel", _fsdp_wrapped_module=child))
    return named("FullyShardedDataParallel", _fsdp_wrapped_module=model)


def vit_of_transformers_4():
    """The modules of transformers 4.57's ViT: their classes' names, attributes and parameters."""

    def linear():
        return nn.Linear(8, 8)

    attention = named("ViTSelfAttention", query=linear(), key=linear(), value=linear())
    layer = named(
        "ViTLayer",
        attention=named("ViTAttention", attention=attention, output=named("ViTSelfOutput", dense=linear())),
        intermediate=named("ViTIntermediate", dense=linear()),
        output=named("ViTOutput", dense=linear()),
        layernorm_before=nn.LayerNorm(8),
        layernorm_after=nn.LayerNorm(8),
    )
    embeddings = named(
        "ViTEmbeddings",
        cls_token=nn.Parameter(nn.Linear(8, 1).weight.detach()),
        position_embeddings=nn.Parameter(nn.Linear(8, 5).weight.detach()),
        patch_embeddings=named("ViTPatchEmbeddings", projection=nn.Conv2d(3, 8, 4)),
    )
    vit = named(
        "ViTModel",
        embeddings=embeddings,
        encoder=named("ViTEncoder", layer=nn.ModuleList([layer])),
        layernorm=nn.LayerNorm(8),
    )
    model = named("ViTForImageClassification", vit=vit, classifier=nn.Linear(8, 3))
    type(model).base_model_prefix = "vit"
    return model


def mixtral():
    return hf.MixtralForCausalLM(hf.MixtralConfig(**_TEXT, num_local_experts=2, num_experts_per_tok=1))


def qwen2_moe():
    sizes = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 2}
    return hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**_TEXT, **sizes, num_experts_per_tok=1))


def mamba():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 11, "state_size": 4}
    return hf.MambaForCausalLM(hf.MambaConfig(**sizes))


def mamba2():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 11, "state_size": 4}
    return hf.Mamba2ForCausalLM(hf.Mamba2Config(**sizes, num_heads=2, head_dim=8, n_groups=1))


def gpt2_vera():
    return peft.get_peft_model(gpt2(), peft.VeraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))


def gpt_oss():
    return hf.GptOssForCausalLM(hf.GptOssConfig(**_TEXT, num_local_experts=2, num_experts_per_tok=1, head_dim=4))


def llama_loha():
    return peft.get_peft_model(llama(), peft.LoHaConfig(r=2, target_modules=["q_proj", "down_proj"]))
