"""Norms over many tensors, what a process holds of a parameter, and random numbers beside a training's."""
