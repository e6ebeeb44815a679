"""Values that JSON can hold."""

import json
import math

from hf_pdyn.common.json_values import finite_or_none


def test_what_is_not_finite_becomes_null_at_every_depth() -> None:
    value = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf, "d": "nan", "e": True}], "f": 3}
    expected = {"a": None, "b": [1.5, None, {"c": None, "d": "nan", "e": True}], "f": 3}
    assert finite_or_none(value) == expected
    assert json.loads(json.dumps(finite_or_none(value), allow_nan=False)) == expected
