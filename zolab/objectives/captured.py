"""Forwards of a batch's shape as CUDA graphs: recorded once, then one launch each.

A graph repeats the same kernels on the same addresses, so it stands for the plain forward only
where the weights stay where they are (placement `in_place`) and the batch is copied into the
buffers that the graph reads. What the host decides within a forward would be frozen in it; so the
first uses of a graph, with other data and weights than it was made with, are compared bit by bit
with the plain way.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from zolab.objectives.batch import Batch

#: A forward that reads fixed buffers, and a way to make one that repeats it.
Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]

#: Uses of a graph that are compared with the plain way.
CHECKED = 2


class CudaCapture:
    """Graphs of one device, with one pool of memory.

    What a replay returns is overwritten by the next replay of any graph.

    Args:
        device: where weights and batches are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        with torch.cuda.device(self.device):
            stream, now = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(now)
            with torch.cuda.stream(stream):
                for _ in range(2):  # libraries and kernels get ready outside the graph
                    run()
            now.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads (pinned copies, NCCL's watchdog) may go on with work of their own.
            with torch.cuda.graph(
                graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"
            ):
                out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


@dataclass
class _Graph:
    """A graph with the batch it reads and how often it was used."""

    batch: Batch
    replay: Run
    uses: int = 0


class Graphs:
    """Graphs by batch shape and number of copies, the least recently used of which go.

    A shape is recorded when it is met for the second time. One failure ends all recording: the
    forwards go the plain way from there and a warning says why.

    Args:
        capture: makes a graph.
        weights: what the forward reads; a weight that moved to another address ends its graphs.
        limit: graphs held at a time.
    """

    def __init__(self, capture: Capture, weights: Sequence[Tensor], limit: int = 16) -> None:
        self.capture = capture
        self.weights = list(weights)
        self.limit = limit
        self.held: OrderedDict[tuple, _Graph] = OrderedDict()
        self.stopped: str | None = None
        self._met: set[tuple] = set()
        self._told = False
        self._at = self._places()

    def terms(self, plain: Callable[[Batch], Tensor], batch: Batch, copies: int) -> Tensor:
        """What `plain(batch)` gives, float32 (copies, examples), valid until the next call.

        Args:
            plain: the forward; it reads nothing that changes but the batch and the weights.
            batch: one mini-batch.
            copies: of the batch.
        """
        if self.stopped is not None:
            return plain(batch)
        if not _fixed(batch):
            if not self._told:
                _say("prompts shared, answers generated, states kept", "some ")
            self._told = True
            return plain(batch)
        if self._places() != self._at:
            self.held.clear()
            self._at = self._places()
        key = (copies, *(tuple(t.shape) for t in _tensors(batch).values()))
        graph = self.held.get(key)
        if graph is None:
            self._record(key, plain, batch)
            return plain(batch)
        self.held.move_to_end(key)
        for name, tensor in _tensors(batch).items():
            getattr(graph.batch, name).copy_(tensor)
        graph.uses += 1
        if graph.uses > CHECKED:
            return graph.replay()
        found, right = graph.replay().clone(), plain(batch)
        if not torch.allclose(found, right, rtol=0.0, atol=0.0, equal_nan=True):
            self._stop("a graph gave other losses than the plain forward")
        return right

    def _record(self, key: tuple, plain: Callable[[Batch], Tensor], batch: Batch) -> None:
        """Make the graph of a shape that was met before."""
        if key not in self._met:
            self._met.add(key)
            return
        own = replace(batch, **{name: t.clone() for name, t in _tensors(batch).items()})
        while len(self.held) >= self.limit:
            self.held.popitem(last=False)
        try:
            self.held[key] = _Graph(own, self.capture(lambda: plain(own)))
        except Exception as error:
            self._stop(
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.held.clear()
        _say(why)

    def _places(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in self.weights)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _fixed(batch: Batch) -> bool:
    """Whether a forward is shaped by the batch's tensors alone."""
    return batch.prompts is None and not (batch.spans or batch.groups or batch.rows)


def capture_of(device: torch.device) -> Capture | None:
    """What records on a device; None where nothing does."""
    return CudaCapture(device) if device.type == "cuda" else None


def graphs_for(model: nn.Module, placement: str, autocast: torch.dtype | None) -> Graphs | None:
    """The graphs of a run; None, with a warning, where its forwards cannot be recorded.

    Args:
        model: on one device.
        placement: name of the placement in force; others than `in_place` make weights of their own
            in each forward, from seeds that a graph would freeze.
        autocast: dtype of the matrix products where it is not that of the weights.
    """
    weights = [*model.parameters(), *model.buffers()]
    device = weights[0].device
    capture = capture_of(device)
    if placement != "in_place":
        _say(f"placement is {placement}, expected in_place")
    elif autocast is not None or hasattr(model, "hf_device_map"):
        _say("the model is cast in each forward or lies on several devices")
    elif capture is None:
        _say(f"graphs are recorded on cuda, and the model is on {device.type}")
    else:
        return Graphs(capture, weights)
    return None


def _say(why: str, which: str = "") -> None:
    warnings.warn(
        f"train.capture: {which}forwards go the plain way: {why}", RuntimeWarning, stacklevel=3
    )
