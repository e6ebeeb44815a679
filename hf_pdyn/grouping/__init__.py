"""Which parameters a signal goes to: pathway and component labels, and parameter groups by label."""

from hf_pdyn.common.label_names import COMPONENTS, NAME, PATHWAYS
from hf_pdyn.grouping.advice import how_to_train_bias_like, norm_names
from hf_pdyn.grouping.groups import Group, build_param_groups, present_labels, select, split_groups
from hf_pdyn.grouping.labels import Label, Rule, label_parameters
from hf_pdyn.grouping.named_groups import split_by_rules
from hf_pdyn.grouping.names import canonical_name, layer_of

__all__ = [
    "COMPONENTS",
    "NAME",
    "PATHWAYS",
    "Group",
    "Label",
    "Rule",
    "build_param_groups",
    "canonical_name",
    "how_to_train_bias_like",
    "label_parameters",
    "layer_of",
    "norm_names",
    "present_labels",
    "select",
    "split_by_rules",
    "split_groups",
]
