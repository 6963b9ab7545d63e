"""Inner products of layers along thin factors, made by the pass that writes their input.

Such a layer reads its whole input once more than the product with its weight does. Where a layer
normalisation or another such layer wrote that input by native kernels, those make the inner
products as well, while the rows are in the cache. Who reads what is learned in the evaluations
themselves, by the very tensors that layers are called with. A part of each row is kept, at another
place from row to row, and compared by the reader: where an output was changed on its way, it makes
its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

from torch import Tensor

from zolab.optim.native.thin import Given, Inners
from zolab.optim.placements.factored import ThinLinear

#: Readers of one output at most.
READERS = 4


class Following:
    """Which layers read the output of which."""

    def __init__(self) -> None:
        self._linear: Mapping[int, ThinLinear] = {}
        self._readers: dict[int, list[int]] = {}  # by modules' ids
        self._inners: dict[int, tuple[list[int], Inners]] = {}
        # By the ids of outputs: the tensor, who wrote it, and what its readers are given.
        self._written: dict[int, tuple[weakref.ref, int, dict[int, Given]]] = {}

    def aim(self, linear: Mapping[int, ThinLinear]) -> None:
        """An evaluation begins.

        Args:
            linear: layers along thin factors with what they need, by the ids of their modules.
        """
        self._linear = linear
        for writer, readers in self._readers.items():
            some = [key for key in readers if key in linear]
            if some:
                self._inners[writer] = some, Inners([linear[key].thin for key in some])

    def rest(self) -> None:
        """Hold nothing until the next evaluation."""
        self._linear, self._inners = {}, {}
        self._written.clear()

    def run(
        self, key: int, x: Tensor, forward: Callable[[Tensor, Given | None, Inners | None], Tensor]
    ) -> Tensor | None:
        """What a module gives for x.

        Args:
            key: id of the module.
            x: (rows, ..., n).
            forward: gives it from x, from what was made with x, and from what is to be made.
        """
        given = self._given(key, x)
        readers, following = self._inners.get(key, ([], None))
        made = following.room(x.numel() // x.shape[-1]) if following else []
        out = forward(x, given, following)
        if out is not None:
            held = dict(zip(readers, made, strict=True))
            self._written[id(out)] = weakref.ref(out), key, held
        return out

    def _given(self, key: int, x: Tensor) -> Given | None:
        """What was made for a module when x was written."""
        out, writer, held = self._written.get(id(x), (None, 0, {}))
        if out is None or out() is not x or key not in self._linear:
            return None
        readers = self._readers.setdefault(writer, [])
        if key not in readers and len(readers) < READERS:
            readers.append(key)
        return held.pop(key, None)
