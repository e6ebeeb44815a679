"""Many runs of one script: what p does, what only a learning rate does, and what seeds do."""
