import os

os.environ['HF_HUB_OFFLINE'] = '1'  # a forgotten download must fail at once, not after retries
import torch

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
