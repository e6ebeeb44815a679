"""The share of predicted classes that are right: a module for `evaluate.load` of this directory, with no network."""

# `evaluate` reads these lines as text: one import a line.
import datasets
import evaluate

_DESCRIPTION = "The share of predictions that equal their reference, between 0 and 1."

_INPUTS = """
Args:
    predictions (list of int): the predicted class of every example.
    references (list of int): its true class.
Returns:
    accuracy (float): right predictions / all predictions.
"""


class Accuracy(evaluate.Metric):
    def _info(self):
        classes = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": classes, "references": classes}),
        )

    def _compute(self, predictions, references):
        right = sum(predicted == true for predicted, true in zip(predictions, references, strict=True))
        return {"accuracy": right / len(references)}
