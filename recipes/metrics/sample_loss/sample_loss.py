"""`evaluate.load("recipes/metrics/sample_loss")`: how the losses of single samples are distributed."""

import datasets
import evaluate

from hf_pdyn import sample_loss

_DESCRIPTION = """The distribution of the losses of single samples: a row of Table 2 of "Information allocation
dynamics in neural network optimization". Shares are fractions, quantiles are interpolated linearly."""

_INPUTS = """
Args:
    losses: the loss of every sample, in nats. NaN and infinity count as larger than every other.
    correct: whether each is classified right, all at once to `compute`; may be left out.

Returns:
    count, mean, std, p50, p95, p99, share_above_5, nonfinite and, with `correct`, accuracy.
"""


class SampleLoss(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            # `correct` is no feature: evaluate (0.4.6) has none that may be left out.
            features=datasets.Features({"losses": datasets.Value("float64")}),
        )

    def _compute(self, losses, correct=None):
        row = sample_loss.summary(losses, correct).to_dict()
        return {name: value for name, value in row.items() if value is not None}
