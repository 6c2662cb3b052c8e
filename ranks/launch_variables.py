"""Check the environment variables of a launch before anything else reads them.

``accelerate launch`` passes its options and its default configuration file on as environment variables. Some of them change
the model or its training without the recipe saying so (compilation, DeepSpeed, gradient accumulation), and a mistyped one
ends in a traceback, in one case at import: so this module imports neither torch nor Accelerate.
"""

import logging
import os
from collections.abc import Mapping

from common.errors import InputError

_TRUE = {"1", "true", "t", "yes", "y", "on"}
_FALSE = {"0", "false", "f", "no", "n", "off"}
_BOOLEANS = (
    "ACCELERATE_USE_CPU",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "USE_TORCH_XLA",
)
_FSDP_BOOLEANS = (
    "FSDP_OFFLOAD_PARAMS",
    "FSDP_ACTIVATION_CHECKPOINTING",
    "FSDP_CPU_RAM_EFFICIENT_LOADING",
    "FSDP_USE_ORIG_PARAMS",
    "FSDP_SYNC_MODULE_STATES",
    "FSDP_FORWARD_PREFETCH",
)
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported; shard with FSDP2 instead (configs/launch/gpus_8_fsdp2.yaml)",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported; shard with FSDP2 instead (configs/launch/gpus_8_fsdp2.yaml)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config is not supported; use DDP or FSDP2 (configs/launch/)",
}
_UNSUPPORTED_WITH_FSDP = {
    "FSDP_OFFLOAD_PARAMS": "parameters are not offloaded to the CPU; set fsdp_offload_params: false",
    "FSDP_ACTIVATION_CHECKPOINTING": "set train.gradient_checkpointing=true instead of fsdp_activation_checkpointing",
}
_RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""How the processes of one launch find each other."""


def check_launch_variables() -> None:
    """Raise :class:`InputError` naming every environment variable of the launch that is not supported."""
    problems = launch_problems(os.environ)
    if problems:
        raise InputError(*(f"launch: {problem}" for problem in problems))


def launch_problems(environment: Mapping[str, str]) -> list[str]:
    """One line for each variable that is malformed, missing or asks for something unsupported."""
    sharded = _is_true(environment, "ACCELERATE_USE_FSDP")
    booleans = _BOOLEANS + (_FSDP_BOOLEANS if sharded else ())
    unsupported = _UNSUPPORTED | (_UNSUPPORTED_WITH_FSDP if sharded else {})
    problems = [
        f"{name}={environment[name]}: must be true or false; unset it or correct it"
        for name in booleans
        if name in environment and environment[name].lower() not in _TRUE | _FALSE
    ]
    if sharded and environment["ACCELERATE_USE_FSDP"].lower() != "true":  # any other spelling means no to Accelerate
        problems.append(f"ACCELERATE_USE_FSDP={environment['ACCELERATE_USE_FSDP']}: write true")
    problems += [
        f"{name}={environment[name]}: {why}" for name, why in unsupported.items() if _is_true(environment, name)
    ]
    return [*problems, *_other_settings(environment, sharded), *_rendezvous_problems(environment)]


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in _TRUE


def _other_settings(environment: Mapping[str, str], sharded: bool) -> list[str]:
    problems = []
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        problems.append(
            f"ACCELERATE_DYNAMO_BACKEND={backend}: Accelerate would compile the model; set dynamo_backend: 'NO' in its "
            "configuration file, and train.compile=true to compile the body"
        )
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        problems.append(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps}: gradients are accumulated by train.micro_batch_size; unset it"
        )
    level = environment.get("ACCELERATE_LOG_LEVEL")
    if level is not None and level.upper() not in logging.getLevelNamesMapping():
        known = ", ".join(name.lower() for name in logging.getLevelNamesMapping())
        problems.append(f"ACCELERATE_LOG_LEVEL={level}: no logging level; choose one of {known}")
    ignored = environment.get("FSDP_IGNORED_MODULES")
    if sharded and ignored:
        problems.append(f"FSDP_IGNORED_MODULES={ignored}: all modules are sharded; remove fsdp_ignored_modules")
    return problems


def _rendezvous_problems(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with this process's rank and addresses; nothing for a single process."""
    problems, numbers = [], {}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if name in environment:
            try:
                numbers[name] = int(environment[name])
            except ValueError:
                problems.append(f"{name}={environment[name]}: must be a whole number; unset it or correct it")
    alone = numbers.get("WORLD_SIZE", 1) == 1 and numbers.get("LOCAL_RANK", -1) == -1
    if problems or alone:
        return problems
    if numbers.get("LOCAL_WORLD_SIZE", 1) < 1:
        return [f"LOCAL_WORLD_SIZE={numbers['LOCAL_WORLD_SIZE']}: must be at least 1"]
    # On CPUs Accelerate fills in what a launch with one process per machine need not set.
    filled_in = "LOCAL_RANK" not in environment and _is_true(environment, "ACCELERATE_USE_CPU")
    needed = [name for name in _RENDEZVOUS if not (filled_in and name in ("LOCAL_RANK", "MASTER_PORT"))]
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        stated = ", ".join(f"{name}={environment[name]}" for name in _RENDEZVOUS if environment.get(name))
        return [
            f"{stated}, but {' and '.join(missing)} not set: start all processes with torchrun, accelerate launch or "
            "configs/launch/slurm.sbatch, which set them all; for a single process unset them all"
        ]
    if not 0 <= numbers["RANK"] < numbers["WORLD_SIZE"]:
        return [f"RANK={numbers['RANK']} is not among the ranks 0 to WORLD_SIZE - 1 = {numbers['WORLD_SIZE'] - 1}"]
    if "MASTER_PORT" in numbers and not 0 < numbers["MASTER_PORT"] < 1 << 16:
        return [f"MASTER_PORT={numbers['MASTER_PORT']} is no port; choose one from 1024 to 65535"]
    return []
