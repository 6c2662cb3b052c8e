"""The callback in real trainings of transformers' Trainer, against what the Trainer itself logs."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from stability.monitor.trainer import MonitorCallback

from .loops import VOCABULARY, gpt2, rows_of, status_of

TRAINERS_OWN = {"loss/nll": "loss", "grad_norm/total": "grad_norm", "lr": "learning_rate"}


class Sequences(torch.utils.data.Dataset):
    """Random tokens; the first few targets of most sequences are ignored, so that micro-batches differ in their tokens."""

    def __len__(self):
        return 90

    def __getitem__(self, index):
        x = torch.randint(VOCABULARY, (16,), generator=torch.Generator().manual_seed(index))
        y = x.clone()
        y[: index % 9] = -100
        return {"input_ids": x, "labels": y}


def trained(folder, callbacks, model=None, resume=None, **options):
    arguments = TrainingArguments(
        str(folder),
        **{"per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [], "use_cpu": True} | options,
        disable_tqdm=True,
        save_strategy="steps" if "save_steps" in options else "no",
    )
    trainer = Trainer(
        model=model or gpt2(0.1),
        args=arguments,
        train_dataset=Sequences(),
        eval_dataset=Sequences(),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.3, "gradient_accumulation_steps": 3, "warmup_steps": 3},  # all steps are clipped
        {"max_grad_norm": 0.0, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
        {"max_grad_norm": 1.0, "eval_strategy": "steps", "eval_steps": 7},
    ],
    ids=["clipped", "smoothed", "evaluated"],
)
def test_the_numbers_are_those_that_the_trainer_logs(tmp_path, options):
    callback = MonitorCallback(tmp_path / "run")
    trainer = trained(tmp_path / "out", [callback], logging_steps=1, num_train_epochs=2, **options)
    rows = rows_of(tmp_path / "run")
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [row["step"] for row in rows] == [entry["step"] for entry in logged] == list(range(1, len(rows) + 1))
    for name, key in TRAINERS_OWN.items():
        assert [row[name] for row in rows] == pytest.approx([entry[key] for entry in logged], rel=1e-6)
    assert len({tuple(row) for row in rows}) == 1
    for row in rows:
        groups = [value**2 for name, value in row.items() if name.startswith("grad_norm/") and "total" not in name]
        assert sum(groups) ** 0.5 == pytest.approx(row["grad_norm/total"], rel=1e-4)  # before clipping, like the total
    assert "backward" not in vars(trainer.accelerator)
    assert "clip_grad_norm_" not in vars(trainer.accelerator)
    assert status_of(tmp_path / "run")["status"] == "finished"


def test_every_step_is_there_although_the_trainer_logs_none_and_training_is_the_same_to_the_bit(tmp_path):
    options = {"max_steps": 50, "gradient_accumulation_steps": 2, "logging_steps": 500}
    alone = trained(tmp_path / "out", [], **options)
    watched = trained(tmp_path / "out", [MonitorCallback(tmp_path / "run")], **options)
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(1, 51))
    for one, other in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_training_that_resumes_from_a_checkpoint_writes_its_rows_again_from_there(tmp_path):
    options = {"max_steps": 30, "save_steps": 20}
    trained(tmp_path / "out", [MonitorCallback(tmp_path / "run")], **options)
    whole = rows_of(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        MonitorCallback(tmp_path / "run")
    again = MonitorCallback(tmp_path / "run", resume=True)
    trained(tmp_path / "out", [again], resume=str(tmp_path / "out" / "checkpoint-20"), **options)
    rows = rows_of(tmp_path / "run")
    assert rows[:20] == whole[:20]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["loss/nll"] for row in rows] == pytest.approx([row["loss/nll"] for row in whole], rel=1e-6)


def test_a_second_training_goes_on_after_the_rows_of_one_that_failed(tmp_path):
    class Fails(Sequences):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            if self.read == 50:
                raise RuntimeError("a bad file")
            return super().__getitem__(index)

    callback = MonitorCallback(tmp_path / "run", flush_every=1)
    arguments = TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=4, report_to=[], use_cpu=True, max_steps=23
    )
    trainer = Trainer(model=gpt2(), args=arguments, train_dataset=Fails(), callbacks=[callback])
    with pytest.raises(RuntimeError, match="a bad file"):
        trainer.train()
    before = len(rows_of(tmp_path / "run"))
    trainer.train()
    assert 0 < before < 23
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(1, before + 24))
    assert not trainer.optimizer.optimizer._optimizer_step_post_hooks
