"""Imported by the fork server alone: all that a run and the check of its configuration need, and the usual bodies."""

# ruff: noqa: E402, F401

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the suite, which stops its runs

import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama
import transformers.models.qwen3.modeling_qwen3
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import suite.check
import train_lm
import training.loop

from .warm import IGNORED

get_checkpoint_conversion_mapping("gpt2")  # made once: half a second of a process's first checkpoint
for number in IGNORED:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(
    signal.SIG_BLOCK, IGNORED
)  # in a fork they wait until it can end of them: a stop must not be lost
