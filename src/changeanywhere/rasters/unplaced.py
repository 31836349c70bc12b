"""Images without a place are welcome: rasterio's warning of them is not passed on.

``warnings.catch_warnings`` saves and restores what all threads share: of two threads that read at once, one takes the
filter away under the other, or leaves it behind. Here the first one in sets it, and the last one out takes it back.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_lock = threading.Lock()
_caught = ExitStack()
_within = 0


@contextmanager
def unplaced() -> Iterator[None]:
    """Read or write rasters, in any thread, that may have no georeference."""
    global _within
    from rasterio.errors import NotGeoreferencedWarning

    with _lock:
        if not _within:
            _caught.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                _caught.close()
