"""The claims of *Information allocation dynamics*, a module each, with its rows, verdict and figure in `results`."""

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
)
"""Their names by number, from claim 1; a later one may take the rows of an earlier one."""
