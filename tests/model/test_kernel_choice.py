"""Which kernel evaluates the loss: compared with float64 before its first use, replaced if it is wrong."""

import warnings

import pytest
import torch

from model import kernel_choice, kernels
from model.kernel_choice import KernelChoice, choose_kernel, fault_of_kernel

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _unchecked():
    fault_of_kernel.cache_clear()
    yield
    fault_of_kernel.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [2, 300, 5000])
def test_the_kernel_passes_its_check(vocabulary, dtype):
    assert fault_of_kernel(CPU, vocabulary, dtype) is None
    assert choose_kernel("triton", CPU, vocabulary, dtype) == KernelChoice("triton")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda n: n.weights_CV[3].mul_(1.001), "its probabilities in float32 differ from float64's by up to"),
        (lambda n: n.max_C[5].add_(0.1), "its largest logits in float32 differ from float64's by up to 0.1"),
        (lambda n: n.logsumexp_C[0].fill_(torch.nan), "its log-sum-exps in float32 differ from float64's by up to inf"),
        (lambda n: n.max_C[99], "IndexError: index 99 is out of bounds"),
    ],
)
def test_a_kernel_that_is_wrong_or_raises_is_found_out(monkeypatch, spoil, problem):
    right = kernels.masked_softmax

    def wrong(*arguments):
        found = right(*arguments)
        spoil(found)
        return found

    monkeypatch.setattr(kernels, "masked_softmax", wrong)
    with pytest.warns(UserWarning, match="the loss's Triton kernel cannot be used on cpu") as warned:
        found = fault_of_kernel(CPU, 300, torch.float32)
    assert found.startswith(problem)
    assert found in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        assert fault_of_kernel(CPU, 300, torch.float32) == found
    with pytest.raises(RuntimeError, match=problem):
        choose_kernel("triton", CPU, 300, torch.float32)


def test_auto_takes_the_kernel_on_a_gpu_alone_and_torch_where_it_is_faulty(monkeypatch):
    assert choose_kernel("auto", CPU, 300, torch.float32) == KernelChoice("torch")
    monkeypatch.setattr(kernel_choice, "fault_of_kernel", lambda *_: None)
    assert choose_kernel("auto", GPU, 300, torch.float32) == KernelChoice("triton")
    assert choose_kernel("torch", GPU, 300, torch.float32) == KernelChoice("torch")
    monkeypatch.setattr(kernel_choice, "fault_of_kernel", lambda *_: "it does not compile")
    assert choose_kernel("auto", GPU, 300, torch.float32) == KernelChoice("torch", "it does not compile")


def test_the_kernel_needs_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="it needs a GPU, and the device is cpu"):
        choose_kernel("triton", CPU, 300, torch.float32)
