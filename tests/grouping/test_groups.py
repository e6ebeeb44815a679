"""Splitting groups by label: what is kept, what is refused, and what torch makes of it."""

from itertools import chain

import pytest
import torch
from torch import nn

from hf_pdyn.grouping import (
    Label,
    build_param_groups,
    label_parameters,
    present_labels,
    select,
    split_groups,
)
from tests.grouping import models
from tests.grouping.models import build
from tests.grouping.test_labels import MODELS


def trainer_groups(model):
    """The stock Trainer's pair: decay for what is neither a bias nor a norm."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = ("bias", "ln_", "norm")
    return [
        {"params": [p for n, p in named if not any(x in n for x in plain)], "weight_decay": 0.1, "lr": 3.0},
        {"params": [p for n, p in named if any(x in n for x in plain)], "weight_decay": 0.0, "lr": 3.0},
    ]


def split(model, groups=None):
    return split_groups(groups or trainer_groups(model), model.named_parameters(), label_parameters(model))


def rows(groups):
    return [(g["pathway"], g["component"], g["weight_decay"], [n for n, _ in g["params"]]) for g in groups]


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_parameter_is_in_exactly_one_group(name):
    model = build(name)
    labels = label_parameters(model)
    for groups in (split(model), build_param_groups(model)):
        members = list(chain.from_iterable(group["params"] for group in groups))
        assert sorted(n for n, _ in members) == sorted(labels)
        named = dict(model.named_parameters())
        assert all(tensor is named[n] for n, tensor in members)
        for group in groups:
            assert group["params"]
            assert {labels[n] for n, _ in group["params"]} == {(group["pathway"], group["component"])}
            assert type(group["pathway"]) is type(group["component"]) is str


def test_gpt2_in_the_trainers_groups():
    block = "transformer.h.0"
    model = build("gpt2")
    assert rows(split(model)) == [
        ("weight", "attention", 0.1, [f"{block}.attn.c_attn.weight", f"{block}.attn.c_proj.weight"]),
        ("weight", "mlp", 0.1, [f"{block}.mlp.c_fc.weight", f"{block}.mlp.c_proj.weight"]),
        ("weight", "embedding", 0.1, ["transformer.wte.weight", "transformer.wpe.weight"]),
        ("bias_like", "attention", 0.0, [f"{block}.attn.c_attn.bias", f"{block}.attn.c_proj.bias"]),
        ("bias_like", "mlp", 0.0, [f"{block}.mlp.c_fc.bias", f"{block}.mlp.c_proj.bias"]),
        (
            "bias_like",
            "norm",
            0.0,
            [
                f"{block}.ln_1.weight",
                f"{block}.ln_1.bias",
                f"{block}.ln_2.weight",
                f"{block}.ln_2.bias",
                "transformer.ln_f.weight",
                "transformer.ln_f.bias",
            ],
        ),
    ]
    assert rows(split(model)) == rows(split(build("gpt2")))


def test_other_keys_are_carried_over_and_inputs_left_alone():
    model = build("gpt2")
    groups = trainer_groups(model)
    before = [dict(group) for group in groups]
    assert all(group["lr"] == 3.0 for group in split(model, groups))
    assert [group.keys() for group in groups] == [group.keys() for group in before]
    assert all(len(a["params"]) == len(b["params"]) for a, b in zip(groups, before, strict=True))


def test_groups_that_differ_in_settings_only_are_not_merged():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    mesh = [{"params": [p], "weight_decay": 0.1} for p in model.parameters()]
    assert rows(split(model, mesh)) == [
        ("weight", "other", 0.1, ["0.weight"]),
        ("weight", "other", 0.1, ["1.weight"]),
    ]


@pytest.mark.parametrize("as_mapping", [True, False])
@pytest.mark.parametrize("pack", [lambda n, p: p, lambda n, p: (n, p)], ids=["tensors", "pairs"])
def test_forms_of_input(as_mapping, pack):
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    named = list(model.named_parameters())
    names = {p: n for n, p in named} if as_mapping else named
    groups = [{"params": (pack(n, p) for n, p in named), "weight_decay": 0.0}, {"params": []}]
    assert rows(split_groups(groups, names, label_parameters(model))) == [
        ("weight", "other", 0.0, ["0.weight"]),
        ("bias_like", "norm", 0.0, ["1.weight", "1.bias"]),
        ("bias_like", "other", 0.0, ["0.bias"]),
    ]


def test_a_lone_tensor_is_a_group():
    model = nn.Linear(2, 2, bias=False)
    assert [g["params"][0][1] for g in split(model, [{"params": model.weight}])] == [model.weight]


def test_equal_tensors_are_different_parameters():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[1].weight)
    (group,) = split(model, [{"params": list(model.parameters())}])
    assert [n for n, _ in group["params"]] == ["0.weight", "1.weight"]


def test_tied_parameters_come_once():
    model = models.named("Net", wte=nn.Embedding(3, 2), lm_head=nn.Linear(2, 3, bias=False))
    model.lm_head.weight = model.wte.weight
    (group,) = build_param_groups(model)
    assert [n for n, _ in group["params"]] == ["wte.weight"]


class TestRefusals:
    model = nn.Linear(2, 2)

    def test_a_parameter_in_two_groups(self):
        groups = [{"params": [self.model.weight]}, {"params": [self.model.weight]}]
        with pytest.raises(ValueError, match="'weight' is in the groups twice"):
            split(self.model, groups)

    def test_a_parameter_of_another_model(self):
        with pytest.raises(ValueError, match=r"shape \(4, 3\) in the groups is none of the model's"):
            split(self.model, [{"params": [nn.Parameter(torch.zeros(4, 3))]}])

    def test_a_parameter_without_label(self):
        frozen = nn.Linear(2, 2).requires_grad_(False)
        with pytest.raises(ValueError, match=r"'weight' in the groups has no label.*freeze and unfreeze"):
            split(frozen, [{"params": [frozen.weight]}])

    def test_nothing_trainable(self):
        with pytest.raises(ValueError, match=r"Linear has no trainable parameter.*requires_grad"):
            build_param_groups(nn.Linear(2, 2).requires_grad_(False))

    def test_labels_and_rules(self):
        with pytest.raises(ValueError, match="labels or rules, not both"):
            build_param_groups(self.model, labels=label_parameters(self.model), rules=[("a", "weight/mlp")])


class TestBuildParamGroups:
    def test_only_weights_decay(self):
        groups = build_param_groups(build("gpt2"), weight_decay=0.1)
        assert {(g["pathway"], g["weight_decay"]) for g in groups} == {("weight", 0.1), ("bias_like", 0.0)}

    def test_everything_decays_on_request(self):
        groups = build_param_groups(build("gpt2"), weight_decay=0.1, decay_bias_like=True)
        assert {g["weight_decay"] for g in groups} == {0.1}

    def test_rules_and_labels(self):
        model = nn.Linear(2, 2)
        everything = [("", "weight/head")]
        (group,) = build_param_groups(model, rules=everything)
        assert (group["pathway"], group["component"]) == ("weight", "head")
        (group,) = build_param_groups(model, labels=dict.fromkeys(("weight", "bias"), Label("weight", "mlp")))
        assert group["component"] == "mlp"

    def test_torch_keeps_names_and_labels(self, tmp_path):
        model = build("gpt2")
        optimizer = torch.optim.AdamW(build_param_groups(model, weight_decay=0.1), lr=1e-3)
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        assert sorted(names) == sorted(label_parameters(model))
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
        assert [g["component"] for g in loaded["param_groups"]] == [g["component"] for g in optimizer.param_groups]

    def test_an_optimizers_own_groups_can_be_split_again(self):
        model = build("gpt2")
        optimizer = torch.optim.SGD(build_param_groups(model), lr=0.1)
        again = split(model, optimizer.param_groups)
        assert rows(again) == rows(build_param_groups(model))
        torch.optim.SGD(again, lr=0.1)


class TestSelect:
    def test_by_pathway_and_component(self):
        groups = build_param_groups(build("gpt2"))
        assert [g["component"] for g in select(groups, "weight")] == ["attention", "mlp", "embedding"]
        assert [g["pathway"] for g in select(groups, "mlp")] == ["weight", "bias_like"]
        assert select(groups, "norm")[0] is groups[-1]

    def test_present_labels(self):
        groups = build_param_groups(build("gpt2_lora"))
        assert present_labels(groups) == ("weight", "lora_A", "lora_B")
        assert present_labels([{"params": []}]) == ()

    def test_unknown_label(self):
        with pytest.raises(ValueError, match=r"Unknown label 'norms'\. Did you mean 'norm'\?.* weight, bias_like, "):
            select([], "norms")

    def test_absent_label(self):
        groups = build_param_groups(build("gpt2_lora"))
        with pytest.raises(ValueError, match=r"has the label 'norm'\. Labels present: weight, lora_A, lora_B\."):
            select(groups, "norm")

    def test_groups_without_labels(self):
        with pytest.raises(ValueError, match="Labels present: none; split_groups gives them"):
            select([{"params": []}], "norm")
