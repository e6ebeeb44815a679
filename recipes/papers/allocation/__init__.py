"""Claims of *Information allocation dynamics*, with their rows, verdicts and figures in `results`."""

TITLE = "Information allocation dynamics in neural network optimization"
ARXIV = None
CLAIMS = (
    "residual_update",
    "path_allocation",
    "sparse_gain",
    "gradient_ratio",
    "sample_losses",
    "hard_samples",
    "lr_decay",
    "dynamic_p",
    "own_effect",
    "fine_tuning",
    "one_curve",
    "label_p",
)
"""By number, from claim 1; a later one may take the rows of an earlier one."""
