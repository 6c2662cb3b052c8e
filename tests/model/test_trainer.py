"""An exported model under transformers' Trainer: the numbers that the stock model with the same weights gets."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from .test_stock import pair

EXAMPLES = [
    {"input_ids": row, "labels": row.masked_fill(torch.arange(8) >= length, -100)}
    for row, length in zip(
        torch.randint(3, 96, (14, 8), generator=torch.Generator().manual_seed(0)),
        [8, 3, 8, 5, 2, 8, 7] * 2,
        strict=True,
    )
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    ours, stock = pair("llama")
    folder = tmp_path_factory.mktemp("exported")
    for name, model in (("ours", ours), ("stock", stock)):
        model.save_pretrained(folder / name)
    return [folder / "ours", folder / "stock"]


def accuracy(prediction):
    hits = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
    return {"accuracy": hits[prediction.label_ids[:, 1:] != -100].mean()}


def trained(place, folder, **arguments):
    """What a Trainer logs, evaluates and predicts."""
    metrics = arguments.pop("compute_metrics", None)
    arguments = {
        "max_steps": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
    } | arguments
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(place),
        TrainingArguments(folder, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", **arguments),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:5],
        compute_metrics=metrics,
    )
    trainer.train()
    evaluated, predicted = trainer.evaluate(), trainer.predict(EXAMPLES[:3])
    logged = [log for log in trainer.state.log_history if "loss" in log]
    numbers = {f"{key} {i}": log[key] for i, log in enumerate(logged) for key in ("loss", "grad_norm")}
    measured = {k: v for k, v in (evaluated | predicted.metrics).items() if not k.endswith(("second", "runtime"))}
    return numbers | measured, predicted


ARGUMENTS = {
    "metrics": {"compute_metrics": accuracy, "eval_accumulation_steps": 1},
    "accumulation": {"gradient_accumulation_steps": 3},
    "label smoothing": {"label_smoothing_factor": 0.2},
}


@pytest.mark.parametrize("how", ARGUMENTS)
def test_training_evaluating_and_predicting(exported, how, tmp_path):
    (ours, predicted), (stock, expected) = (trained(place, tmp_path, **ARGUMENTS[how]) for place in exported)
    assert ours == pytest.approx(stock, rel=1e-4), how
    assert {"loss 3", "eval_loss", "test_loss"} <= ours.keys()
    np.testing.assert_allclose(predicted.predictions, expected.predictions, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(predicted.label_ids, expected.label_ids)
