"""Measuring how near to the edge of stability a step of the run comes (stability/measure/edge.py): one more forward pass of its
batch, and two of a sequence. At the steps that telemetry.edge_every names, and at all where an intervention asks for it.

Shapes: B sequences of this rank, T positions, S sampled tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from model.chunked import TokenLosses
from ranks.collectives import all_reduce, only_looking
from stability.intervene.stages import edge_reads
from stability.measure.edge import adam_values, cosine, dot, ghost_radius, kappa, moments_of
from stability.stress.base import Stress

from .negatives import Rows, told
from .run import Run

TOKENS = 64
"""Positions of the first sequence whose logits are compared."""


def edge_due(run: Run, step: int) -> bool:
    """Whether ``step`` is one that is measured."""
    every = run.edge_every
    return run.config.telemetry.measures("updates") and every is not None and step % every == 0


def edge_of(run: Run, step: int, x_BT: Tensor, y_BT: Tensor, targets: Tensor, negative_K: Rows | None) -> Edge | None:
    """What measures around the update of ``step``, if anything wants to know."""
    due = edge_due(run, step)
    reads = {"losses", "logit_changes"} if due else edge_reads(run.interventions)
    return Edge(run, x_BT, y_BT, targets, negative_K, reads, due=due) if reads else None


class Edge:
    """The measurements around one update, as interventions see them, too. All ranks make them; nothing waits for the device."""

    def __init__(
        self,
        run: Run,
        x_BT: Tensor,
        y_BT: Tensor,
        targets: Tensor,
        negative_K: Rows | None,
        reads: Collection[str],
        *,
        due: bool,
    ) -> None:
        """``targets``: the number by which the step's loss is divided, over all ranks. ``negative_K``: rows that are negatives.
        ``reads``: of ``losses``, ``logit_changes``, those that are going to be called. ``due``: whether the row is to have what
        was measured."""
        self.run, self.targets, self.reads, self.due = run, targets, reads, due
        device = run.accelerator.device
        self.x_BT, y_BT = (ids.to(device, non_blocking=True) for ids in (x_BT, y_BT))
        rows = run.config.train.micro_batch_size or len(x_BT)
        self.micro_batches = [
            {"input_ids": x_RT, "shift_labels": y_RT, **told(negative_K, number * rows, rows, device)}
            for number, (x_RT, y_RT) in enumerate(zip(self.x_BT.split(rows), y_BT.split(rows), strict=True))
        ]
        length = x_BT.shape[1]
        self.positions_S = torch.arange(0, length, -(-length // TOKENS), device=device)
        self.gradients: list[Tensor] = []

    @torch.no_grad()
    def before_gradients_change(self) -> None:
        """Keep the gradients as they came, if something is going to change single ones."""
        run = self.run
        if "losses" not in self.reads:
            return
        acting = any(s.acts(run.step + 1, run.batch_number(run.step + 1)) for s in run.stresses)
        if acting or any(i.has("on_tensors") for i in run.interventions.values()):
            self.gradients = [g.clone() for g in _gradients(run.telemetry.parameters)]

    @torch.no_grad()
    def before_update(self, scale: Tensor | None) -> None:
        """Measure what the parameters do before they change. ``scale``: of the whole gradient, undone later: the slope is that
        of the loss, not of what clipping has left of it."""
        run, self.scale = self.run, scale
        if "losses" in self.reads:
            self.loss_before = self._sum(run.telemetry.losses) if trains_as_it_evaluates(run) else self._loss()
        if "logit_changes" in self.reads:
            self.logits_SV = self._logits()
        momentum = moments_of(run.optimizer.optimizer, run.telemetry.parameters) if self.due else None
        gradients = _gradients(run.telemetry.parameters)
        self.along_momentum = cosine(gradients, [m["exp_avg"] for m in momentum]) if momentum else None

    @torch.no_grad()
    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """The loss before the update and now, and what the slope promised. Before telemetry holds the update's difference."""
        t = self.run.telemetry
        differences = (before - now for before, now in zip(t.before, t.parameters, strict=True))
        return self.loss_before, self._loss(), self._promised(differences)

    @torch.no_grad()
    def logit_changes(self) -> dict[str, Tensor]:
        """The ghost radius of the sampled tokens, by quantile."""
        radius = ghost_radius(self.logits_SV, self._logits())
        # NaN times 0 would not be 0.
        spread_3 = torch.stack(list(radius.values()))
        if self.run.accelerator.process_index > 0:
            spread_3 = torch.zeros_like(spread_3)
        all_reduce(spread_3, "sum")
        return dict(zip(radius, spread_3.unbind(), strict=True))

    @torch.no_grad()
    def after_update(self) -> dict[str, Tensor]:
        """What the row is to have, by metric name, once telemetry holds the difference that the whole update made."""
        if not self.due:
            return {}
        run = self.run
        used = _gradients(run.telemetry.parameters)
        promised = self._promised(run.telemetry.before)
        values = {"edge/promised": promised, "edge/kappa": kappa(self.loss_before, self._loss(), promised)}
        values |= {f"edge/logit_change_{name}": value for name, value in self.logit_changes().items()}
        if (moments := moments_of(run.optimizer.optimizer, run.telemetry.parameters)) is not None:
            values |= adam_values(moments, used, run.telemetry.groups)
        if self.along_momentum is not None:
            values["adam/momentum_cosine"] = self.along_momentum
        return {name: value.float() for name, value in values.items()}

    def _promised(self, differences: Iterable[Tensor]) -> Tensor:
        """g . d (), from the parameters before the update minus those after it."""
        promised = -dot(self.gradients or _gradients(self.run.telemetry.parameters), differences)
        return promised if self.gradients or self.scale is None else promised / self.scale

    def _loss(self) -> Tensor:
        """The loss of the step's batch () as the step has it: penalties and negatives included, per target, over all ranks; but
        without dropout."""
        model = self.run.bare_model()
        model.penalised_evaluation = True
        try:
            with only_looking(model):
                losses = [model(**inputs, skip_logits=True, use_cache=False).losses for inputs in self.micro_batches]
        finally:
            model.penalised_evaluation = False
        return self._sum(losses)

    def _sum(self, losses: Sequence[TokenLosses]) -> Tensor:
        total = torch.stack([each.trained_sum for each in losses]).sum()
        all_reduce(total, "sum")
        return total / self.targets

    def _logits(self) -> Tensor:
        """Logits (S, V) of this rank's first sequence; those of rank 0 count."""
        model = self.run.bare_model()
        with only_looking(model):
            logits_SV = model(input_ids=self.x_BT[:1], logits_to_keep=self.positions_S, use_cache=False).logits[0]
        return logits_SV[:, : model.lm_head.n_classes]


def trains_as_it_evaluates(run: Run) -> bool:
    """Whether a training pass has the loss of an evaluation, to the bit: then the step's own need not be measured again."""
    model = run.bare_model()
    dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    dropout = dropout or any(getattr(model.model.config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))
    of_batch = any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    changed = any(type(s).attach is not Stress.attach for s in run.stresses)
    return not (dropout or of_batch or changed or run.config.train.compile)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
