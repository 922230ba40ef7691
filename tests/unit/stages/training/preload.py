"""Imported once by the server that the tests' ranks are forked from: torch and deepspeed take seconds to import."""

import torch
import torch._dynamo  # every optimizer's first step would import it

from stages.training import loop
from stages.training.engine import import_deepspeed

torch.set_num_threads(1)
import_deepspeed(torch.device("cpu"))
__all__ = ["loop"]
