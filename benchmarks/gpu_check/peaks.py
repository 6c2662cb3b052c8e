"""Peak speed of GPUs in dense matrix products with bfloat16 inputs, by device name.

From the vendor's data sheets, whose figures with sparsity are halved. V100 and T4 have no bfloat16 units: theirs is for float16.
"""

import re

TFLOPS = {
    r"\bGB200\b": 2500.0,
    r"\bB200\b": 2250.0,
    r"\bH200 NVL\b|\bH100 NVL\b": 835.5,
    r"\bH[18]00 PCIe\b": 756.0,
    r"\bG?H200\b|\bH100\b|\bH800\b": 989.4,
    r"\bA100\b|\bA800\b": 312.0,
    r"\bA40\b": 149.7,
    r"\bA30\b": 165.0,
    r"\bA10\b": 125.0,
    r"\bRTX A6000\b": 154.8,
    r"\bL40S\b": 362.0,
    r"\bL40\b": 181.0,
    r"\bL4\b": 121.0,
    r"\bRTX 4090\b(?! (D|Laptop))": 165.2,
    r"\bRTX 3090\b(?! Ti)": 71.0,
    r"\bV100-SXM2\b": 125.0,
    r"\bV100-PCIE\b": 112.0,
    r"\bTesla T4\b": 65.0,
}
"""By pattern in the name that CUDA reports; the first that is found counts."""


def data_sheet_tflops(device_name: str) -> float | None:
    """The device's peak in TFLOP/s; None if it is not known or the device is a slice of a GPU."""
    if "MIG" in device_name:
        return None
    return next((peak for pattern, peak in TFLOPS.items() if re.search(pattern, device_name)), None)
