"""Rows of one sequence each, as transformers need not find out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Where transformers looks for several sequences in a row, and the function that does.
_WHERE, _NAME = "transformers.masking_utils", "find_packed_sequence_indices"


@contextmanager
def one_sequence() -> Iterator[None]:
    """Forwards within have rows of one sequence each, counted from 0.

    Models that hand on the positions they made themselves have them looked through, and the answer
    is always the same: none. On a GPU the host would wait for it at the beginning of each forward.
    """
    masking = sys.modules.get(_WHERE)
    found = getattr(masking, _NAME, None)
    if found is None:
        yield
        return
    setattr(masking, _NAME, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking, _NAME, found)
