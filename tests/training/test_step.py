"""A training step: what it computes, what it leaves alone, and that it reads nothing back.

That it does not wait for a GPU either is in tests/gpu/test_steps.py.
"""

import gc
import math
import traceback
import weakref

import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from training.compiled import compile_body
from training.evaluate import evaluate
from training.run import go_to
from training.step import seed_dropout, training_step

from .built import built


def test_going_back_keeps_no_second_model_in_memory(recipe):
    """Under mixed precision the model refers to itself, so that only the garbage collector lets it go."""
    run = built(recipe, "train.precision=bf16")
    old = weakref.ref(run.bare_model())
    gc.disable()
    try:
        go_to(run, None)
        assert old() is None
    finally:
        gc.enable()


def test_neither_training_nor_evaluation_forms_logits(recipe):
    run, outputs = built(recipe), []
    run.bare_model().register_forward_hook(lambda module, arguments, output: outputs.append(output))
    training_step(run, 1)
    evaluate(run)
    assert len(outputs) == 3
    assert all(out.logits is None and out.losses is not None for out in outputs)


class HostReads(TorchDispatchMode):
    """Records every operation that brings a number to the host; for the methods which torch does not dispatch see below."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if "_local_scalar_dense" in str(function) or "aten.equal" in str(function) or "nonzero" in str(function):
            self.found.append("".join(traceback.format_stack(limit=12)))
        return function(*arguments, **(keywords or {}))


def test_a_step_reads_nothing_back_from_the_device(recipe, monkeypatch):
    """A whole training step: attention probe, two micro-batches, remedies, update, telemetry, measurements of the edge; and a
    transfer at the end."""
    kinds = ("zclip", "adagc", "agc", "skip_step", "spam, pause: 1, every: 2", "stable_adamw")
    kinds += ("clip_update_norm", "reset_moments", "z_loss", "max_z", "mu_loss", "last_step", "qk_clip, every: 1")
    kinds += ("safe_step", "safe_step, by: logits")
    remedies = f"interventions=[{', '.join(f'{{kind: {kind}}}' for kind in kinds)}]"
    often = ("telemetry.attention_every=1", "telemetry.edge_every=1")
    run = built(recipe, "name=unread", "train.micro_batch_size=4", *often, remedies)
    training_step(run, 1)
    with HostReads() as reads:
        for method in ("tolist", "cpu", "numpy", "item"):
            usual = getattr(torch.Tensor, method)

            def counted(self, *arguments, usual=usual, **keywords):
                reads.found.append("".join(traceback.format_stack(limit=12)))
                return usual(self, *arguments, **keywords)

            monkeypatch.setattr(torch.Tensor, method, counted)
        bool(torch.ones(()))
        torch.ones(2).tolist()
        assert len(reads.found) == 2, "the check itself must see reads"
        reads.found.clear()
        training_step(run, 2)
        assert reads.found == []
        rows = run.recorder.transfer().rows
        assert len(reads.found) == 1, "one transfer for all steps"
    assert [row["step"] for row in rows] == [1, 2]
    assert {"attention/layer_01/logit_max", "edge/kappa", "noise/variance"} <= rows[1].keys()


def test_a_bad_step_leaves_parameters_and_moments_alone(recipe):
    """With one flush for many steps, the steps after the bad one must not move the parameters either."""
    run = built(recipe, "name=guarded")
    for step in (1, 2):
        training_step(run, step)
    bias = run.model.model.h[0].mlp.c_fc.bias
    sound = bias.detach().clone()
    bias.data[3] = math.inf

    def state():
        moments = [v for slots in run.optimizer.optimizer.state.values() for v in slots.values()]
        return [t.detach().clone() for t in (*run.model.parameters(), *moments)]

    before = state()
    training_step(run, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    bias.data.copy_(sound)  # sound again, but the run is over all the same
    before = state()
    training_step(run, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    rows, healthy = run.recorder.transfer()
    assert [r["step"] for r in rows[:healthy]] == [1, 2]
    assert run.vitals.names()[0] == "parameter of model.h.0.mlp.c_fc.bias"


def test_a_compiled_body_is_compiled_once_however_many_micro_batches_and_whatever_else_looks_at_it(recipe):
    """Beyond a limit of eight graphs torch gives up and runs the rest uncompiled."""
    looking = ("telemetry.attention_every=2", "telemetry.edge_every=2")
    run, graphs = built(recipe, "name=counted", "train.micro_batch_size=1", *looking), CompileCounter()
    compile_body(run.bare_model().model, backend=graphs)
    for step in (1, 2):
        training_step(run, step)
        evaluate(run)
    assert graphs.frame_count == 1
    assert run.recorder.transfer().healthy == 2


def test_dropout_draws_what_torchs_own_seed_gives():
    seed_dropout(torch.device("cpu"), 1234567890123456789)
    drawn = torch.rand(8)
    torch.manual_seed(1234567890123456789)
    assert torch.equal(drawn, torch.rand(8))
