"""FSDP2 without a GPU: the parts of the loop that touch sharded parameters, on a one-process gloo mesh."""

import textwrap

from ..conftest import ROOT, python

SCRIPT = """
    import sys
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoConfig
    from configs.load import load_config
    from model import SwapHeadConfig, new_model
    from stability.checkpoints import optimizer_tensors
    from training.run import build_optimizer, build_telemetry

    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    config = load_config("configs/pydoc_micro.yaml")
    fields = {"n_layer": 2, "n_head": 2, "n_embd": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    text = AutoConfig.for_model("gpt2", vocab_size=90, bos_token_id=0, eos_token_id=0, **fields)
    x_BT = torch.randint(0, 90, (4, 8), generator=torch.Generator().manual_seed(0))
    found = []
    for sharded in (False, True):
        model = new_model(SwapHeadConfig(text, head={"kind": "metric"}, objective={"kind": "tfsd"}), 0).train()
        if sharded:
            mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
            for block in model.model.h:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert model.lm_head.weight is model.model.wte.weight
        optimizer, telemetry = build_optimizer(model, config.optimizer), build_telemetry(model, config)
        for _ in range(2):
            out = model(input_ids=x_BT, shift_labels=x_BT, num_items_in_batch=32, statistics=True, use_cache=False)
            out.loss.backward()
            telemetry.add_losses(out.losses)
            values = telemetry.loss_values()
            total = telemetry.before_update()
            torch.nn.utils.clip_grads_with_norm_(telemetry.parameters, 1.0, total)
            optimizer.found_inf = torch.zeros(())
            optimizer.step()
            telemetry.after_update()
            optimizer.zero_grad()
            values |= telemetry.collect()
        found.append(({k: float(v) for k, v in values.items()}, optimizer_tensors(model, optimizer)))
    (plain, plain_state), (shard, shard_state) = found
    assert plain.keys() == shard.keys()
    assert all(abs(plain[k] - shard[k]) <= 1e-4 * abs(plain[k]) + 1e-6 for k in plain), (plain, shard)
    assert plain_state.keys() == shard_state.keys()
    assert all(torch.allclose(plain_state[k], shard_state[k], atol=1e-6) for k in plain_state)
    dist.destroy_process_group()
    print("agree")
"""


def test_a_sharded_step_measures_and_moves_what_a_plain_one_does(tmp_path):
    result = python("-c", textwrap.dedent(SCRIPT), tmp_path / "rendezvous", PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("agree")
