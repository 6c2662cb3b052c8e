"""Imported by the fork server as well, if runs of the suite compile: what torch would load and find out in each of them."""

import contextlib

import torch

if not torch.cuda.is_available():  # there it might begin to use the GPU, which would then be lost to forks
    # Whatever stands in the way of compiling is told by the run that does.
    with contextlib.suppress(OSError, RuntimeError):
        import torch._inductor.compile_fx
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        pick_vec_isa()  # compiles and starts small programs to see which vector instructions there are: a second and a half
