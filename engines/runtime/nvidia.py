"""NVIDIA's driver, asked through its own libraries: a container, or a Jetson, need not have the program nvidia-smi."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_CUDA, _NVML = ("nvcuda.dll", "nvml.dll") if sys.platform == "win32" else ("libcuda.so.1", "libnvidia-ml.so.1")


def has_driver() -> bool:
    """Whether the driver's library is there. Starts nothing on a GPU."""
    return _library(_CUDA) is not None


def driver_version() -> str | None:
    """The driver's version, as far as it says it, and that of the CUDA it brings; None without a driver."""
    number = ctypes.c_int()
    cuda = _library(_CUDA)
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(number)):
        return None
    brings = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    release = _release()
    return f"{release}, {brings}" if release else brings


def _release() -> str | None:
    """Its release, such as 580.95.05, by NVML; None where that is missing or does not know, as on older Jetsons."""
    management = _library(_NVML)
    if management is None or management.nvmlInit_v2():
        return None
    text = ctypes.create_string_buffer(80)
    try:
        found = not management.nvmlSystemGetDriverVersion(text, len(text))
    finally:
        management.nvmlShutdown()
    return text.value.decode(errors="replace") if found and text.value not in (b"", b"N/A") else None


def _library(name: str) -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        return ctypes.CDLL(name)
    return None
