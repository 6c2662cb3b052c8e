"""Shared set-up of the tests: quiet, offline, one thread (the suite's runs are tiny; threads only get in each other's way)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from hypothesis import settings
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()
settings.register_profile("project", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("project")
