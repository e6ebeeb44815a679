"""Claims of *On the implicit bias of Adam*, with their rows, verdicts and figures in `results`."""

TITLE = "On the implicit bias of Adam"
ARXIV = "2309.00079"
CLAIMS = (
    "flow_order",
    "steady_state",
    "bilinear_sides",
    "sign_flip",
    "full_batch",
)
"""By number; a later one may take the rows of an earlier one."""
