"""The callback in real fits of Lightning, where that is installed."""

from __future__ import annotations

import pytest
import torch

lightning = pytest.importorskip("lightning.pytorch")

from stability.monitor.lightning import MonitorCallback  # noqa: E402

from .loops import gpt2, rows_of, status_of, token_loss  # noqa: E402


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = gpt2()
        self.losses = []
        self.fails_at = None

    def training_step(self, batch, index):
        if index == self.fails_at:
            raise RuntimeError("a bad batch")
        loss = token_loss(self.model, index)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(folder, module, callbacks):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, torch.utils.data.DataLoader(range(30)))
    return module


def test_every_step_has_a_row_and_training_is_the_same_to_the_bit(tmp_path):
    alone = fit(tmp_path, Module(), [])
    watched = fit(tmp_path, Module(), [MonitorCallback(tmp_path / "run", flush_every=4)])
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 16))
    pairs = zip(watched.losses[::2], watched.losses[1::2], strict=True)
    assert [row["loss/nll"] for row in rows] == pytest.approx([(a + b) / 2 for a, b in pairs], rel=1e-6)
    assert all(row["grad_norm/total"] > 0.11 for row in rows)  # before clipping
    assert all("update_rms/layer_01" in row and "hidden_norm/final/mean" in row for row in rows)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    assert status_of(tmp_path / "run")["status"] == "finished"


def test_a_fit_that_fails_is_a_run_that_failed(tmp_path):
    module = Module()
    module.fails_at = 11
    with pytest.raises(RuntimeError, match="a bad batch"):
        fit(tmp_path, module, [MonitorCallback(tmp_path / "run")])
    assert status_of(tmp_path / "run") == {"status": "failed", "step": 5, "reason": "RuntimeError: a bad batch"}
