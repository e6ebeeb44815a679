"""Claims of *Time-dependent mirror flows*, with their rows, verdicts and figures in `results`."""

TITLE = "Time-dependent mirror flows and where to find them"
ARXIV = "2504.12883"
"""There as *Mirror, mirror of the flow: how does regularization shape implicit bias?*"""
CLAIMS = (
    "mirror_maps",
    "commutation",
    "diagonal_networks",
    "sparse_coding",
    "attention_rank",
    "lora_shutoff",
    "lr_schedule",
    "stored_bias",
)
"""By number; a later one may take the rows of an earlier one."""
