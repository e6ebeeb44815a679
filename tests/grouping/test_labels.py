"""The full table of labels for every kind of model, and the rules that override it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hf_pdyn.grouping import COMPONENTS, PATHWAYS, Label, canonical_name, label_parameters, layer_of
from tests.grouping import models
from tests.grouping.models import build

TABLES = Path(__file__).parent / "tables"

# Where transformers renamed modules, any one of a model's tables has to fit as a whole.
MODELS = {
    "gpt2": ["gpt2"],
    "vit": ["vit", "vit_encoder_layer"],
    "vit_of_transformers_4": ["vit_encoder_layer"],
    "llama": ["llama"],
    "bert_classifier": ["bert_classifier"],
    "bert_mlm": ["bert_mlm"],
    "resnet": ["resnet"],
    "convnext": ["convnext"],
    "convnextv2": ["convnextv2"],
    "dinov2": ["dinov2", "dinov2_self_attention"],
    "opt": ["opt"],
    "t5": ["t5"],
    "gpt2_lora": ["gpt2_lora"],
    "gpt2_rslora": ["gpt2_lora"],
    "gpt2_dora": ["gpt2_dora"],
    "gpt2_ia3": ["gpt2_ia3"],
    "gpt2_modules_to_save": ["gpt2_modules_to_save"],
    "gpt2_bias_lora_only": ["gpt2_bias_lora_only"],
    "gpt2_bias_all": ["gpt2_bias_all"],
    "gpt2_embedding_dora": ["gpt2_embedding_dora"],
    "gpt2_trainable_tokens": ["gpt2_trainable_tokens"],
    "llama_lora_bias": ["llama_lora_bias"],
    "vit_lora": ["vit_lora"],
    "mixtral": ["mixtral"],
    "qwen2_moe": ["qwen2_moe"],
    "gpt_oss": ["gpt_oss"],
    "mamba": ["mamba"],
    "mamba2": ["mamba2"],
    "gpt2_vera": ["gpt2_vera"],
    "llama_loha": ["llama_loha"],
}


def table(name):
    lines = (TABLES / f"{name}.txt").read_text().splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


def written(labels):
    return {name: str(label) for name, label in labels.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_row_of_the_table(name):
    model = build(name)
    labels = written(label_parameters(model))
    tables = [table(t) for t in MODELS[name]]
    expected = next((t for t in tables if t.keys() == labels.keys()), tables[0])
    assert labels == expected
    assert list(labels) == [n for n, p in model.named_parameters() if p.requires_grad]


def test_every_table_is_used():
    assert {path.stem for path in TABLES.glob("*.txt")} == {t for tables in MODELS.values() for t in tables}


@pytest.mark.parametrize("name", MODELS)
def test_labelling_twice_gives_the_same(name):
    model = build(name)
    assert list(label_parameters(model).items()) == list(label_parameters(model).items())


@pytest.mark.parametrize("name", ["gpt2", "vit", "bert_mlm", "opt", "gpt2_modules_to_save", "gpt2_dora"])
@pytest.mark.parametrize(
    "wrap",
    [models.wrap_like_ddp, models.wrap_by_compile, models.wrap_twice, models.wrap_like_fsdp1],
)
def test_wrappers_change_no_label(name, wrap):
    plain = build(name)
    expected = {canonical_name(n): label for n, label in label_parameters(plain).items()}
    model = wrap(build(name))
    labels = label_parameters(model)
    assert {canonical_name(n): label for n, label in labels.items()} == expected
    assert {canonical_name(n, model): label for n, label in labels.items()} == expected
    assert list(labels) == [n for n, p in model.named_parameters() if p.requires_grad]


def test_a_frozen_parameter_has_no_label():
    model = build("gpt2")
    model.transformer.wte.weight.requires_grad_(False)
    model.transformer.h[0].mlp.requires_grad_(False)
    expected = {n: label for n, label in table("gpt2").items() if ".mlp." not in n and ".wte." not in n}
    assert written(label_parameters(model)) == expected


def test_a_model_without_trainable_parameters_has_no_labels():
    assert label_parameters(nn.Linear(2, 2).requires_grad_(False)) == {}


def test_flat_fsdp_parameters_are_refused():
    model = models.named("FullyShardedDataParallel", _flat_param=nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="use_orig_params: true"):
        label_parameters(model)


class TestModulesOfTorch:
    """What the library models do not have."""

    def labels(self, **children):
        return written(label_parameters(models.named("Net", **children)))

    @pytest.mark.parametrize(
        "norm",
        [
            nn.BatchNorm1d(2),
            nn.SyncBatchNorm(2),
            nn.InstanceNorm2d(2, affine=True),
            nn.GroupNorm(1, 2),
            nn.LayerNorm(2),
            nn.RMSNorm(2),
        ],
        ids=lambda norm: type(norm).__name__,
    )
    def test_norms(self, norm):
        assert set(self.labels(a=norm).values()) == {"bias_like/norm"}

    def test_multihead_attention(self):
        attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        assert self.labels(mixer=attention) == {
            "mixer.in_proj_weight": "weight/attention",
            "mixer.in_proj_bias": "bias_like/attention",
            "mixer.bias_k": "bias_like/attention",
            "mixer.bias_v": "bias_like/attention",
            "mixer.out_proj.weight": "weight/attention",
            "mixer.out_proj.bias": "bias_like/attention",
        }

    def test_encoder_layer(self):
        labels = self.labels(block=nn.TransformerEncoderLayer(4, 2, 8))
        assert labels["block.linear1.weight"] == "weight/mlp"
        assert labels["block.linear2.bias"] == "bias_like/mlp"
        assert labels["block.self_attn.in_proj_weight"] == "weight/attention"
        assert labels["block.norm1.weight"] == "bias_like/norm"

    def test_recurrence(self):
        assert self.labels(rnn=nn.LSTM(2, 2)) == {
            "rnn.weight_ih_l0": "weight/other",
            "rnn.weight_hh_l0": "weight/other",
            "rnn.bias_ih_l0": "bias_like/other",
            "rnn.bias_hh_l0": "bias_like/other",
        }

    def test_transposed_convolution_and_embedding_bag(self):
        assert self.labels(a=nn.ConvTranspose1d(2, 2, 1), b=nn.EmbeddingBag(3, 2)) == {
            "a.weight": "weight/conv",
            "a.bias": "bias_like/conv",
            "b.weight": "weight/embedding",
        }

    def test_weight_norm_magnitude_is_bias_like(self):
        assert self.labels(conv=nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 1))) == {
            "conv.bias": "bias_like/conv",
            "conv.parametrizations.weight.original0": "bias_like/conv",
            "conv.parametrizations.weight.original1": "weight/conv",
        }

    @pytest.mark.parametrize(
        ("tensor", "label"),
        [
            ("logit_scale", "bias_like/other"),
            ("logit_bias", "bias_like/other"),
            ("class_embedding", "bias_like/embedding"),
            ("register_tokens", "bias_like/embedding"),
            ("pos_embed", "bias_like/embedding"),
            ("masked_spec_embed", "bias_like/embedding"),
            ("gamma_1", "bias_like/other"),
            ("layer_scale_1", "bias_like/other"),
            ("relative_position_bias_table", "bias_like/other"),
            ("lambda_q1", "weight/other"),
            ("A_log", "weight/other"),
            ("kernel", "weight/other"),
            ("lora_A", "weight/lora_A"),
            ("q_bias", "bias_like/other"),
        ],
    )
    @pytest.mark.parametrize("shape", [(1,), (4, 3)])
    def test_raw_tensors(self, tensor, label, shape):
        assert self.labels(**{tensor: nn.Parameter(torch.zeros(shape))}) == {tensor: label}

    def test_raw_tensors_inside_attention(self):
        inner = models.named("X", q_bias=nn.Parameter(torch.zeros(2)), layer_scale=nn.Parameter(torch.zeros(2)))
        assert set(self.labels(attn=inner).values()) == {"bias_like/attention"}

    def test_beits_relative_position_bias_stands_beside_the_attention(self):
        bias = models.named("RelPos", relative_position_bias_table=nn.Parameter(torch.zeros(2)))
        layer = models.named("BeitLayer", relative_position_bias=bias)
        assert set(self.labels(layers=nn.ModuleList([layer])).values()) == {"bias_like/attention"}

    def test_nearest_ancestor_decides(self):
        inner = models.named("ExpertMLP", proj=nn.Linear(2, 2, bias=False))
        outer = models.named("CrossAttentionBlock", ffn=inner, proj=nn.Linear(2, 2, bias=False))
        assert self.labels(blocks=nn.ModuleList([outer])) == {
            "blocks.0.ffn.proj.weight": "weight/mlp",
            "blocks.0.proj.weight": "weight/attention",
        }

    def test_a_family_name_is_not_a_block(self):
        layer = models.named("Qwen3MoeDecoderLayer", proj=nn.Linear(2, 2), attn=models.named("Y", a=nn.Linear(2, 2)))
        labels = self.labels(layers=nn.ModuleList([layer]))
        assert labels["layers.0.proj.weight"] == "weight/other"
        assert labels["layers.0.attn.a.weight"] == "weight/attention"

    def test_the_roots_class_name_says_nothing(self):
        for root in ("TinyMLP", "AttentionModel", "LayerNorm"):
            model = models.named(root, proj=nn.Linear(2, 2))
            assert written(label_parameters(model)) == {"proj.weight": "weight/other", "proj.bias": "bias_like/other"}

    @pytest.mark.parametrize("head", ["classifier", "score", "lm_head", "fc", "head", "qa_outputs"])
    def test_usual_heads(self, head):
        labels = self.labels(**{head: nn.Linear(2, 2)}, body=models.named("Z", **{head: nn.Linear(2, 2)}))
        assert labels[f"{head}.weight"] == "weight/head"
        assert labels[f"body.{head}.weight"] == "weight/other"

    def test_a_real_attribute_called_module_is_kept(self):
        model = models.named("Net", module=models.named("M", fc=nn.Linear(2, 2)), head=nn.Linear(2, 2))
        assert canonical_name("module.fc.weight", model) == "module.fc.weight"
        assert written(label_parameters(model, [("^module", "weight/mlp")]))["module.fc.weight"] == "weight/mlp"

    def test_a_base_model_that_peft_did_not_make_is_kept(self):
        model = models.named("Net", base_model=models.named("M", model=models.named("N", proj=nn.Linear(2, 2))))
        assert canonical_name("base_model.model.proj.weight", model) == "base_model.model.proj.weight"


def test_a_model_inside_the_users_own_keeps_its_head():
    model = models.named("Net", encoder=build("bert_classifier"), proj=nn.Linear(2, 2))
    expected = {f"encoder.{name}": label for name, label in table("bert_classifier").items()}
    expected |= {"proj.weight": "weight/other", "proj.bias": "bias_like/other"}
    assert written(label_parameters(model)) == expected


class TestNames:
    @pytest.mark.parametrize(
        ("raw", "canonical", "layer"),
        [
            ("transformer.h.0.attn.c_attn.bias", None, "transformer.h.0.attn.c_attn"),
            ("vit.embeddings.cls_token", None, "vit.embeddings"),
            ("logit_scale", None, ""),
            ("module.logit_scale", "logit_scale", ""),
            ("module.weight", None, "module"),
            ("head.module.weight", None, "head.module"),
            ("encoder.base_model.model.weight", None, "encoder.base_model.model"),
            ("_orig_mod.module.fc.weight", "fc.weight", "fc"),
            ("module._orig_mod.h.0._checkpoint_wrapped_module.fc.weight", "h.0.fc.weight", "h.0.fc"),
            ("base_model.model.h.c_attn.lora_A.default.weight", "h.c_attn.lora_A.weight", "h.c_attn"),
            ("base_model.model.h.c_attn.lora_B.weight.weight", "h.c_attn.lora_B.weight", "h.c_attn"),
            ("base_model.model.h.c_attn.lora_B.default.bias", "h.c_attn.lora_B.bias", "h.c_attn"),
            ("base_model.model.h.c_attn.base_layer.bias", "h.c_attn.bias", "h.c_attn"),
            (
                "base_model.model.h.c_attn.lora_magnitude_vector.default.weight",
                "h.c_attn.lora_magnitude_vector.weight",
                "h.c_attn",
            ),
            ("base_model.model.h.wte.lora_embedding_A.default", "h.wte.lora_embedding_A", "h.wte"),
            ("base_model.model.h.c_attn.ia3_l.default", "h.c_attn.ia3_l", "h.c_attn"),
            ("base_model.model.score.modules_to_save.default.weight", "score.weight", "score"),
            ("base_model.model.ln_1.modules_to_save.module.bias", "ln_1.bias", "ln_1"),
            ("h.q.lora_A.weight", None, "h.q"),
            ("h.modules_to_save.weight", None, "h.modules_to_save"),
            ("h.default.weight", None, "h.default"),
            ("h.conv.parametrizations.weight.original0", None, "h.conv"),
        ],
    )
    def test_canonical_name_and_layer(self, raw, canonical, layer):
        assert canonical_name(raw) == (canonical or raw)
        assert layer_of(raw) == layer

    @pytest.mark.parametrize("name", ["gpt2_lora", "gpt2_dora", "gpt2_ia3", "gpt2_modules_to_save", "gpt2_bias_all"])
    def test_layers_are_modules_of_the_model_without_adapters(self, name):
        own = {n for n, _ in build("gpt2_classifier").named_modules()}
        assert {layer_of(n) for n in label_parameters(build(name))} <= own


class TestRules:
    def test_the_first_match_wins_over_later_rules_and_the_builtin_decision(self):
        rules = [(r"wpe", "bias_like/embedding"), (r"\.w[tp]e\.", Label("weight", "other"))]
        changed = {
            "transformer.wte.weight": "weight/other",
            "transformer.wpe.weight": "bias_like/embedding",
        }
        assert written(label_parameters(build("gpt2"), rules)) == table("gpt2") | changed

    @pytest.mark.parametrize("pattern", [r"c_attn\.lora_A\.weight$", r"lora_A\.default", r"^h|^transformer.*lora_A"])
    def test_canonical_and_raw_names_are_searched(self, pattern):
        labels = label_parameters(build("gpt2_dora"), [(pattern, "bias_like/other")])
        name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight"
        assert labels[name] == ("bias_like", "other")

    def test_labels_are_plain_strings(self):
        for label in label_parameters(build("gpt2"), [("wte", "weight/mlp")]).values():
            assert type(label.pathway) is str and label.pathway in PATHWAYS
            assert type(label.component) is str and label.component in COMPONENTS

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            (
                ("c_atn", "weight/mlp"),
                r"'c_atn' matches no trainable parameter\. Nearest are .*h\.0\.attn\.c_attn",
            ),
            ((r"^transformr\.wpe\.weight$", "weight/mlp"), r"Nearest are transformer\.wpe\.weight"),
            (("zzz", "weight/mlp"), r"Trainable are transformer\.wte\.weight, .*\.\.\."),
            (("(wte", "weight/mlp"), r"'\(wte' is no valid regular expression: .*"),
            (("wte", "weight"), r"must be 'pathway/component', .*got 'weight'"),
            (("wte", "bias/norm"), r"Unknown pathway 'bias' .*Pathways are weight, bias_like;"),
            (("wte", "weight/atention"), r"Unknown component 'atention' .*Did you mean 'attention'\?"),
            (("wte", Label("weight", "norms")), r"Unknown component 'norms' .*Did you mean 'norm'\?"),
        ],
    )
    def test_errors(self, rule, message):
        with pytest.raises(ValueError, match=message):
            label_parameters(build("gpt2"), [("wpe", "weight/other"), rule])

    def test_no_match_on_a_frozen_model(self):
        with pytest.raises(ValueError, match="no trainable parameter at all"):
            label_parameters(nn.Linear(1, 1).requires_grad_(False), [("a", "weight/mlp")])


@pytest.mark.parametrize("pathway", PATHWAYS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_label_as_text_and_back(pathway, component):
    label = Label(pathway, component)
    assert Label.parse(str(label)) == label == (pathway, component)
    assert f"{label}" == f"{pathway}/{component}"
