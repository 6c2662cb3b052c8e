"""torch.compile with all telemetry on."""

from tests.conftest import rows_of

from .device import assert_same_run, size

TOLERANCE = 1e-3
"""A compiled body fuses operations and so rounds and adds in another order."""


def test_a_compiled_body_follows_an_eager_one(runs):
    """Every metric of every step, probes of the attention included; float32, where they can be told apart from rounding."""
    options = (
        "telemetry.attention_every=4",
        "train.steps=12",
        f"body.n_layer={size(1, 2)}",  # compiling takes by far the most time
        f"train.micro_batch_size={size(4, 8)}",
        "checkpoint.every=12",
        "train.eval_every=12",
    )
    eager = runs.here("eager", *options)
    compiled = runs.process("compiled", *options, "train.compile=true")
    a, b = rows_of(eager), rows_of(compiled)
    missing = {name for x, y in zip(a, b, strict=True) for name in x.keys() ^ y.keys()}
    assert not missing, f"metrics of one of them only: {sorted(missing)}"
    assert_same_run(eager, compiled, TOLERANCE)
