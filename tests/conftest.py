import torch

# The models are tiny: more threads only wait for each other.
torch.set_num_threads(1)
