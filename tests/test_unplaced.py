"""Images without a place, in many threads at once."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rasterio.errors import NotGeoreferencedWarning

from changeanywhere.pairs.codec import decode_image, encode_geotiff
from changeanywhere.rasters.unplaced import unplaced


def test_threads_do_not_take_the_filter_from_each_other() -> None:
    """Warnings are errors here. The one that came first goes first, while the other still writes."""
    before, inside, gone = list(warnings.filters), threading.Event(), threading.Event()

    def first() -> None:
        with unplaced():
            assert inside.wait(30)

    def second() -> None:
        with unplaced():
            inside.set()
            assert gone.wait(30)
            warnings.warn("no place", NotGeoreferencedWarning, stacklevel=1)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(first), pool.submit(second)
        one.result(60)
        gone.set()
        two.result(60)
    assert list(warnings.filters) == before
    with pytest.raises(NotGeoreferencedWarning):
        warnings.warn("no place", NotGeoreferencedWarning, stacklevel=1)


def test_tiles_without_a_place_are_written_and_read_by_many_threads() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    def there_and_back(_: int) -> bool:
        return bool(np.array_equal(decode_image(encode_geotiff(image, None), "x.tif"), image))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(400)))
