"""Names of contestants that targets and ratios refer to. Imports nothing, since reports are also made where torch is missing."""

WHOLE, IN_CHUNKS = "three matmuls", "three matmuls in our chunks"
OURS, LIGER, LIGER_FLOAT32 = "ours, linear + CE", "Liger", "Liger, float32 sums"

LOOP, OTHER, PLAIN = "loop linear+CE", "loop metric+TFSD", "plain GPT"
SILENT = f"{LOOP}, telemetry off"
LOOP_COMPILED, OTHER_COMPILED, PLAIN_COMPILED = (f"{name} compiled" for name in (LOOP, OTHER, PLAIN))
GROUPS = {
    "eager": [LOOP, OTHER, SILENT, PLAIN],
    "compiled": [LOOP, LOOP_COMPILED, OTHER_COMPILED, PLAIN_COMPILED],
}
"""Contestants of the training table that take turns."""
RATIOS = [
    *((LOOP, SILENT), (OTHER, LOOP), (LOOP, PLAIN), (OTHER, PLAIN)),
    *((LOOP_COMPILED, LOOP), (OTHER_COMPILED, LOOP_COMPILED)),
    *((LOOP_COMPILED, PLAIN_COMPILED), (OTHER_COMPILED, PLAIN_COMPILED)),
]
"""Pairs whose times per step are compared."""
