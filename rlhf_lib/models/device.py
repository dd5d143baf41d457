"""Where to compute: the device, its precision, and memory that the process keeps."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

import torch

from rlhf_lib.errors import RecipeError

if TYPE_CHECKING:
    from rlhf_lib.recipe import ComputeConfig

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, instead of handing large blocks back to the system, which clears every page
    of them when they are next asked for: a fifth of a step of GPT-2 on a CPU (docs/log.md). glibc's malloc alone;
    False elsewhere. It holds for the whole process, whose size then stays near its peak.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def pick_device(compute: ComputeConfig) -> torch.device:
    """`auto`: CUDA if there is one, else the CPU. Raises RecipeError for an unavailable device."""
    if compute.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(compute.device)
        torch.empty(1, device=device)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"compute.device {compute.device} can't be used here ({reason}): set auto or cpu") from None
    return device


def pick_dtype(compute: ComputeConfig, device: torch.device) -> torch.dtype:
    """`auto`: bf16 only if the device multiplies it natively (elsewhere it is emulated and slower), else fp32."""
    if compute.precision != "auto":
        return torch.bfloat16 if compute.precision == "bf16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        native = any(able.get(unit, False) for unit in ("amx_bf16", "avx512_bf16", "sve_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
