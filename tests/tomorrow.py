"""A pytest plugin that sets Python's clock to this time tomorrow: what is dated at import then shows in a test's id."""

import time

_now = time.time
time.time = lambda: _now() + 24 * 60 * 60
