"""Evaluation on the fixed validation set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Run


def evaluate(run: Run) -> dict[str, float]:
    """NLL and objective on the fixed validation set; touches no random stream."""
    import torch

    from data.batches import evaluation_batches
    from ranks.collectives import all_reduce, only_looking

    config, accelerator = run.config, run.accelerator
    rows = config.train.micro_batch_size or max(1, config.train.batch_size // accelerator.num_processes)
    batches = evaluation_batches(
        run.store.validation.ids,
        config.data.sequence_length,
        config.train.eval_sequences,
        rows,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    model = run.bare_model()
    sums = torch.zeros(3, device=accelerator.device)
    with only_looking(model):
        for x_BT, y_BT in batches:
            run.watchdog.moved(run.step, "evaluation")
            out = model(
                input_ids=x_BT.to(accelerator.device),
                shift_labels=y_BT.to(accelerator.device),
                skip_logits=True,
                use_cache=False,
            )
            sums += torch.stack([out.losses.nll_sum, out.losses.objective_sum, out.losses.valid_N.sum()])
    all_reduce(sums, "sum")
    nll, objective, count = sums.tolist()
    return {"validation/nll": nll / count, "validation/objective": objective / count}
