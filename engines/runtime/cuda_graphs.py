"""CUDA graphs of a step, one for each batch size: a replay costs one launch, where the step itself costs hundreds.
Not run on a GPU yet: written by PyTorch's documentation, and tested with what passes for torch.cuda."""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engines.errors import UsageError, first_line

log = logging.getLogger("gatestream.engines")

SWITCH = "GATESTREAM_CUDA_GRAPHS"  # environment variable, so that the processes of a service agree: on, off
WARM_UP = 3  # runs before a graph is captured, as torch asks for
_ONE_CAPTURE = threading.Lock()


class Graph(NamedTuple):
    """replay: runs the captured step on the memory it was captured with; results: where it writes them."""

    replay: Callable[[], None]
    results: Tensor


def capture_all(run: Callable[[int], Tensor], sizes: Iterable[int]) -> dict[int, Graph]:
    """A graph of `run(size)` for each batch size; none where graphs are switched off, or one cannot be captured.
    Large ones first: what those need of a memory pool, the small ones find there. Raises UsageError for a switch that
    is neither on nor off."""
    if not _switched_on():
        log.info("CUDA graphs are switched off by %s", SWITCH)
        return {}
    graphs: dict[int, Graph] = {}
    with _ONE_CAPTURE:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        pool = torch.cuda.graph_pool_handle()
        try:
            for size in sorted(sizes, reverse=True):
                graphs[size] = _capture(partial(run, size), stream, pool)
        except RuntimeError as error:
            log.warning("no CUDA graph of a step of %d cameras (%s): steps are launched kernel by kernel, which takes "
                        "longer", size, first_line(error))
            return {}
    return graphs


def _capture(run: Callable[[], Tensor], stream: torch.cuda.Stream, pool: Any) -> Graph:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on using the GPU meanwhile: "global", the default, would fail on what they do.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        results = run()
    return Graph(graph.replay, results)


def _switched_on() -> bool:
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise UsageError(f"{SWITCH}={switch}", "on or off", "set it to off, or unset it")
    return switch == "on"
