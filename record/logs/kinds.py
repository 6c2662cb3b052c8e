"""The formats: importing this module registers them."""

from .base import FORMATS
from .console import Console
from .delimited import Delimited
from .json_document import JsonDocument
from .jsonl import JsonLines
from .parquet import ParquetFile
from .tensorboard_events import TensorBoardEvents
from .trainer_state import TrainerState
from .wandb_csv import WandbExport

__all__ = [
    "FORMATS", "Console", "Delimited", "JsonDocument", "JsonLines", "ParquetFile", "TensorBoardEvents", "TrainerState",
    "WandbExport",
]  # fmt: skip
