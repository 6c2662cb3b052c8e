"""Pretrain a language model and watch it: one run, from configuration to run directory.

    [accelerate launch] train_lm.py --config configs/pydoc_micro.yaml [key.sub=value ...] [--print-config]

Exit status: 0 finished, 2 bad input, 3 diverged (something was not finite), 69 another rank is gone, 74 the disk refused, 75
preempted (checkpoint written); after 69, 74 and 75 the same command goes on. What a run is made of is in training/run.py.
Shapes: B sequences of one micro-batch on this rank, T positions.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import (
    EXIT_DIVERGED,
    EXIT_FINISHED,
    EXIT_PREEMPTED,
    EXIT_RANK_LOST,
    EXIT_STORAGE,
    ArgumentParser,
    exit_status,
)
from configs.load import dump_config, load_config
from configs.schema import RunConfig
from configs.seeds import stream_seed
from stability.launch_variables import check_launch_variables

if TYPE_CHECKING:
    from stability.resume import ResumePoint
    from stability.rewind import GoingBack
    from stability.signals import StopVote
    from training.run import Run

# Threads that wait for each other sleep instead of spinning: with one busy neighbour on the cores, spinning made a step on
# two cores several times slower (RESULTS.md). Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Parse the command line, then run; returns the exit status."""
    parser = ArgumentParser(description="Pretrain a language model and watch it.")
    parser.add_argument("--config", required=True, help="recipe: a YAML file, see configs/")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    arguments = parser.parse_args()
    check_launch_variables()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return EXIT_FINISHED
    return train(config)


def train(config: RunConfig) -> int:
    """Run to the end, to divergence or to preemption."""
    from stability.distributed import from_main
    from stability.launch import start_accelerator
    from stability.lock import run_lock
    from stability.resume import ResumePoint, find_resume_point
    from stability.trackers import refuse_unready
    from training.run import build_run

    accelerator = start_accelerator(config)
    from_main(lambda: refuse_unready(config.trackers), accelerator.device)
    directory = Path(config.output_dir) / config.name
    with contextlib.ExitStack() as held:
        launch = from_main(lambda: held.enter_context(run_lock(directory)), accelerator.device)
        point = ResumePoint(**from_main(lambda: find_resume_point(config, directory).to_json(), accelerator.device))
        if point.finished:
            accelerator.print(f"{directory}: already finished")
            return EXIT_FINISHED
        run = build_run(config, accelerator, directory, point.checkpoint(directory), launch=launch)
        held.callback(run.bar.close)  # what ends the run before its first step begins a line of its own
        from_main(lambda: run.trackers.start(run.step), accelerator.device)
        return guarded(run, point)


def guarded(run: Run, point: ResumePoint) -> int:
    """The run's steps; what may end them from outside becomes one line and an exit status."""
    from stability.watchdog import RankLostError

    try:
        with run.watchdog.watching():
            try:
                open_run_directory(run, point)
                return loop(run)
            except RuntimeError:
                run.watchdog.name_lost()  # a broken connection says nothing about who broke it
                raise
    except RankLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_RANK_LOST
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            return storage_failed(run, error)
        run.recorder.status("failed", run.step, f"{type(error).__name__}: {error}")
        raise


def loop(run: Run) -> int:
    """All steps that are left; returns the exit status."""
    from stability.launch import connection_timeout
    from stability.signals import StopVote, stop_signals

    config, steps = run.config, run.config.train.steps
    run.began = time.perf_counter()
    with stop_signals() as stop, run.bar:
        vote = StopVote(connection_timeout(config.train.stall_seconds))
        while run.step < steps:
            training_step(run, run.step + 1)
            step = run.step
            checkpoint_due = step % config.checkpoint.every == 0 or step == steps
            evaluation_due = step % config.train.eval_every == 0 or checkpoint_due
            stopping = vote(stop.signal is not None) and step < steps
            # Where only a signal makes the run look, an unbroken run would not have looked, nor decided anything.
            regular = step % config.telemetry.flush_every == 0 or evaluation_due
            if not (regular or stopping):
                continue
            last_row = flush(run, evaluation_due)
            if regular and rewind(run):
                continue
            keeping = (checkpoint_due or stopping) and not run.diverged
            spoilt = keeping and not run.vitals.state_is_finite(run.optimizer.optimizer)
            if spoilt:
                run.watch.overflowed(step)
                if regular and rewind(run):
                    continue
            decides_later = not regular and bool(config.interventions)
            if (run.diverged or spoilt) and not decides_later:
                run.watch.finish(step, run.batch_number)
                run.watch.report_divergence(last_row, run.vitals.names(), run.vitals.ranks(), updated=spoilt)
                end(run, vote)
                return EXIT_DIVERGED
            if keeping and not spoilt:
                save_checkpoint(run, undecided=decides_later)
            run.began = time.perf_counter()
            if stopping:
                asked = stop.signal or "a signal to another rank"
                run.recorder.event("preempted", step, step=step, signal=asked)
                run.recorder.status("preempted", step, f"stopped by {asked}; the same command goes on")
                run.watch.say(f"stopped by {asked} after step {step}; the same command goes on")
                end(run, vote)
                return EXIT_PREEMPTED
    run.watch.finish(steps, run.batch_number)
    run.recorder.status("finished", steps)
    end(run, vote)
    nll = math.nan if run.validation_nll is None else run.validation_nll
    run.accelerator.print(f"finished: validation NLL {nll:.4f} nats/token; {run.directory}")
    return EXIT_FINISHED


def end(run: Run, vote: StopVote) -> None:
    """Close trackers and connections. All ranks call it."""
    vote.close()
    run.accelerator.wait_for_everyone()
    run.trackers.finish()
    run.accelerator.end_training()


def open_run_directory(run: Run, point: ResumePoint) -> None:
    """Write what describes the run, and drop the rows that it will write again."""
    from stability.checkpoints import tidy_up
    from stability.environment import environment
    from stability.resume import set_rejected_aside

    config, recorder, accelerator = run.config, run.recorder, run.accelerator
    accelerator.wait_for_everyone()  # all have read the directory
    facts = environment(accelerator.num_processes, accelerator.device, config.train.precision)
    facts["sharded"] = accelerator.is_fsdp2
    facts["parameters"] = sum(p.numel() for p in run.telemetry.parameters)
    path = run.store.path.resolve()
    facts["data"] = {"path": str(path), "store": path.name, "manifest_sha256": run.store.manifest_hash()}
    if accelerator.is_main_process:
        set_rejected_aside(point, run.directory)
        tidy_up(run.directory)
    recorder.write_text("config.yaml", dump_config(config))
    recorder.write_text("environment.json", json.dumps(facts, indent=1) + "\n")
    recorder.rewind(run.step)
    recorder.status("running", run.step)
    for rejected in point.rejected:
        recorder.event("checkpoint_rejected", run.step, step=run.step, **rejected)
        run.watch.say(f"{rejected['checkpoint']} cannot be used: {rejected['problem']}")
    if point.rejected and not run.step:
        run.watch.say("no checkpoint can be used: starting over")
    if run.step:
        recorder.event("resume", run.step, step=run.step)
        run.watch.say(f"going on from step {run.step}")
    accelerator.wait_for_everyone()


def storage_failed(run: Run, error: OSError) -> int:
    """Say what the disk refused and where the same command goes on; returns the exit status."""
    from stability.checkpoints import list_checkpoints

    checkpoints = list_checkpoints(run.directory)
    after = f"checkpoints/{checkpoints[-1].name}" if checkpoints else "the start"
    reason = f"{error.filename or run.directory}: {error.strerror} at step {run.step}"
    with contextlib.suppress(OSError):
        if run.directory.is_dir():
            run.recorder.status("failed", run.step, reason)
    print(f"error: {reason}; mend that, and the same command goes on from {after}", file=sys.stderr)
    return EXIT_STORAGE


# --------------------------------------------------------------------------------------------------------------- a step


def training_step(run: Run, step: int) -> None:
    """One optimizer step over all micro-batches. Reads nothing back from the device."""
    config, accelerator = run.config, run.accelerator
    run.watchdog.moved(step, "batch")
    host = prepare_step(run, step)
    x_BT, y_BT = step_batch(run, step)
    if accelerator.device.type == "cuda":
        x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()  # only from pinned memory does a copy not wait
    rows = config.train.micro_batch_size or len(x_BT)
    targets = valid_targets(y_BT, accelerator.device)
    for start in range(0, len(x_BT), rows):
        run.watchdog.moved(step, "forward and backward")
        last = start + rows >= len(x_BT)
        # Sharded gradients are summed over ranks at once: between micro-batches each rank would hold all of them.
        with contextlib.nullcontext() if last or accelerator.is_fsdp2 else accelerator.no_sync(run.model):
            out = run.model(
                input_ids=x_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                shift_labels=y_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                num_items_in_batch=targets,  # every token counts the same, whichever rank or part holds it
                skip_logits=True,
                statistics=config.telemetry.enabled,
                use_cache=False,
            )
            # Ranks average their gradients, hence the factor. Once ``alive`` is NaN, no update happens any more.
            accelerator.backward(out.loss * (accelerator.num_processes * run.alive))
            run.telemetry.add_losses(out.losses)
    run.watchdog.moved(step, "update")
    run.recorder.add(host, update(run))
    run.step = step


def valid_targets(y_BT: Any, device: Any) -> Any:
    """How many targets of the step count, over all ranks: a device scalar."""
    from data.batches import IGNORED
    from stability.distributed import all_reduce

    count = (y_BT != IGNORED).sum().to(device, non_blocking=True)
    all_reduce(count, "sum")
    return count


def prepare_step(run: Run, step: int) -> dict[str, Any]:
    """Set learning rate and random state of ``step`` and probe attention if that is due; returns what the host knows."""
    import torch

    from stability.stress import lr_factor
    from training.schedule import learning_rate

    config = run.config
    lr = learning_rate(config.optimizer, config.train.steps, step) * lr_factor(config.stress, step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    every = config.telemetry.attention_every
    if config.telemetry.enabled and every is not None and step % every == 0:
        probe_attention(run)
    torch.manual_seed(stream_seed(config.seed, "dropout", step, run.accelerator.process_index))
    return {"step": step, "tokens": step * run.tokens_per_step, "lr": lr, "data/batch": run.batch_number(step)}


def step_batch(run: Run, step: int) -> tuple[Any, Any]:
    """Inputs and targets (B, T) of this rank at ``step``, with the faults that are planted there."""
    from stability.stress import corrupt

    number = run.batch_number(step)
    x_BT, y_BT = run.batches.at(number)
    corrupt(
        x_BT,
        y_BT,
        run.config.stress,
        number,
        seed=run.config.seed,
        vocab_size=run.store.vocab_size,
        first_row=run.accelerator.process_index * len(x_BT),
    )
    return x_BT, y_BT


def probe_attention(run: Run) -> None:
    """Measure the attention logits on fixed validation sequences; touches no random stream and no gradient."""
    from model import attention_probe
    from stability.distributed import only_looking

    model = run.bare_model()
    with only_looking(model), attention_probe(model.model) as layers:
        model(input_ids=run.probe_BT, logits_to_keep=1, use_cache=False)
    run.telemetry.add_attention(layers)


def update(run: Run) -> dict[str, Any]:
    """Clip, then step unless something is not finite; returns what the step measured, on the device."""
    import torch

    from stability.recorder import ALIVE

    telemetry, optimizer, clip_norm = run.telemetry, run.optimizer, run.config.optimizer.clip_norm
    losses = telemetry.loss_values()
    scaled = run.accelerator.scaler is not None
    if scaled:
        # fp16 overflows now and then by design; its GradScaler skips those steps itself, and a gradient tells no divergence.
        run.accelerator.unscale_gradients(optimizer)
    total = telemetry.before_update()
    healthy = losses["loss/objective"].isfinite() & losses["loss/nll"].isfinite() & (total.isfinite() | scaled)
    healthy = run.vitals.look(
        run.alive,
        telemetry.local_loss,
        None if scaled else telemetry.gradient_norm_P,
        telemetry.parameter_norm_P,
        optimizer.optimizer,
        sound=healthy,
    )
    if not scaled:
        # The fused kernel leaves parameters and moments alone where found_inf is 1: no update, and no wait for the device.
        optimizer.optimizer.found_inf = (~healthy).float()
    run.alive = torch.where(healthy, run.alive, math.nan)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(telemetry.parameters, clip_norm, total)
    optimizer.step()
    telemetry.after_update()
    optimizer.zero_grad(set_to_none=True)
    return losses | telemetry.collect() | {ALIVE: run.alive}


# ------------------------------------------------------------------------------------------------------ between the steps


def flush(run: Run, evaluation_due: bool) -> dict[str, Any]:
    """Bring the buffered steps over, evaluate, write and look at them; returns the last row, where a run may diverge."""
    from stability.environment import peak_memory_bytes

    run.watchdog.moved(run.step, "transfer")
    transferred, healthy = run.recorder.transfer()
    speed = len(transferred) * run.tokens_per_step / (time.perf_counter() - run.began)
    run.diverged = healthy < len(transferred)
    rows = transferred[: healthy + 1]  # what came after the bad step saw no update and means nothing
    for row in rows:
        row["throughput/tokens_per_second"] = speed
        row["memory/peak_bytes"] = peak_memory_bytes(run.accelerator.device)
    if evaluation_due and not run.diverged:
        rows[-1] |= evaluate(run)
    run.validation_nll = rows[-1].get("validation/nll")
    run.recorder.write_rows(rows)
    run.watch.look(
        rows, run.batch_number, diverged_since=diverged_since(run, rows[-1]["step"]) if run.diverged else None
    )
    run.trackers.log(rows)
    run.bar.set_postfix({"nll": f"{rows[-1]['loss/nll']:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)
    run.bar.update(rows[-1]["step"] - run.bar.n)
    return rows[-1]


def diverged_since(run: Run, step: int) -> int:
    """The first step to blame for what was not finite at ``step``: the one before, if that one's update had made it so."""
    return step - any(not name.startswith("gradient of ") for name in run.vitals.names())


def rewind(run: Run) -> bool:
    """Go back before what was just seen, if the configuration asks for that; whether it did."""
    from stability.checkpoints import checkpoint_at
    from stability.distributed import from_main
    from stability.rewind import ABANDONED, GoingBack, take_back
    from training.run import go_to

    accelerator = run.accelerator
    # Decided in one place: a network's disk may show the ranks different folders.
    told = from_main(lambda: asdict(back) if (back := whole_way_back(run)) else None, accelerator.device)
    if told is None:
        return False
    back = GoingBack(**told)
    run.trackers.go_back(back.to_step)  # first: killed in between, a tracker has a run too many and no step twice
    if accelerator.is_main_process:
        take_back(run.recorder, back)
    accelerator.wait_for_everyone()
    run.watch.say(
        f"rewind {back.number}: from step {back.from_step} to {back.to_step}, without batches "
        f"{back.skipped[-1][0]} to {back.skipped[-1][1]}; the steps taken back are in {ABANDONED}"
    )
    go_to(run, checkpoint_at(run.directory, back.to_step) if back.to_step else None)
    run.began = time.perf_counter()
    return True


def whole_way_back(run: Run) -> GoingBack | None:
    """Where the run goes back to: to a checkpoint that is whole; those that are not are set aside. Main process only."""
    from stability.checkpoints import checkpoint_at, set_aside
    from stability.integrity import damage
    from stability.rewind import decide

    config, alarms, every = run.config, run.watch.alarms, run.config.checkpoint.every
    while True:
        back = decide(config.interventions, alarms, run.rewind, config.data.skip_steps, run.step, run.directory, every)
        if back is None or back.to_step == 0:
            return back
        target = checkpoint_at(run.directory, back.to_step)
        problem = damage(target)
        if problem is None:
            return back
        set_aside(target)
        run.recorder.event("checkpoint_rejected", run.step, step=run.step, checkpoint=target.name, problem=problem)
        run.watch.say(f"{target.name} cannot be used: {problem}")


def evaluate(run: Run) -> dict[str, float]:
    """NLL and objective on the fixed validation set; touches no random stream."""
    import torch

    from data.batches import evaluation_batches
    from stability.distributed import all_reduce, only_looking

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


def save_checkpoint(run: Run, *, undecided: bool) -> None:
    """Write the checkpoint of this step and delete the ones that need not stay. All ranks call it.

    ``undecided``: whether the run has seen alarms that it would decide about later.
    """
    import torch

    from model import SwapHeadForCausalLM
    from stability.checkpoints import model_tensors, optimizer_tensors, prune, write_checkpoint

    config, accelerator = run.config, run.accelerator
    run.watchdog.moved(run.step, "checkpoint")
    tensors = optimizer_tensors(run.model, run.optimizer.optimizer)
    weights = model_tensors(run.model, run.bare_model())
    if accelerator.is_main_process:
        tokenizer, nll = run.store.load_tokenizer(), run.validation_nll
        with torch.device("meta"):  # of the project's own class: sharding swaps the class of the model it wraps
            model = SwapHeadForCausalLM(run.bare_model().config)

        def save_model(directory: Path) -> None:
            model.save_pretrained(directory, state_dict=weights)
            tokenizer.save_pretrained(directory)

        state = {
            "tokens": run.step * run.tokens_per_step,
            "validation_nll": nll if nll is not None and math.isfinite(nll) else None,
            "detectors": run.watch.state(),
            "alarms": [asdict(alarm) for alarm in run.watch.alarms] if undecided else [],
            "config": config.model_dump(mode="json"),
            "data": run.store.manifest_hash(),
            "gradient_scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }
        run.recorder.sync()  # the rows before a checkpoint are on the disk before it
        write_checkpoint(run.directory, run.step, save_model, tensors, state)
        spikes = run.watch.first_steps(config.checkpoint.keep_before_spikes)
        prune(run.directory, config.checkpoint.keep, spikes, config.checkpoint.every)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    ended_with = exit_status(main)
    if ended_with in (EXIT_RANK_LOST, EXIT_STORAGE):  # other ranks are gone or wait: nothing may wait for them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended_with)
    raise SystemExit(ended_with)
