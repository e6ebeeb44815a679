"""What a claim can come to: the outcomes of `hf_pdyn.sweep`."""

from hf_pdyn.sweep.outcome import *  # noqa: F403
