"""Effects and trends over seeds: those of `hf_pdyn.sweep`."""

from hf_pdyn.sweep.statistics import *  # noqa: F403
