"""Which parameters a signal goes to: pathway and component labels, and parameter groups by label."""

from hf_pdyn.grouping.groups import Group, build_param_groups, present_labels, select, split_groups
from hf_pdyn.grouping.labels import COMPONENTS, PATHWAYS, Label, Rule, label_parameters
from hf_pdyn.grouping.names import canonical_name, layer_of

__all__ = [
    "COMPONENTS",
    "PATHWAYS",
    "Group",
    "Label",
    "Rule",
    "build_param_groups",
    "canonical_name",
    "label_parameters",
    "layer_of",
    "present_labels",
    "select",
    "split_groups",
]
