"""Class rasters that some other model wrote: one for each image, by equal names or usual endings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import LegendError, SourceError
from changeanywhere.folders import composed
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.legend import Legend, LegendMap, MaskValues, find_legend_file, load_legend, load_legend_map
from changeanywhere.legend import load_legend_values as read_values
from changeanywhere.rasters.facts import Facts, Window
from changeanywhere.rasters.ground import lies_elsewhere
from changeanywhere.sources.files import digest, read_info, read_mask, read_mask_info
from changeanywhere.sources.matching import OF_MASKS, PLAIN, stems_below
from changeanywhere.sources.problems import Problems


class RasterReader:
    """One class raster, read by window."""

    def __init__(self, file: Path, facts: Facts, mapping: LegendMap, numbers: MaskValues) -> None:
        self.legend = mapping.target
        self._file, self._facts, self._mapping, self._numbers = file, facts, mapping, numbers

    @contextmanager
    def settled(self, samples: Iterable[npt.NDArray[np.float32]]) -> Iterator[None]:
        """Nothing depends on the image."""
        yield

    def read(self, window: Window, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """f32 ``[K, h, w]``: 1 for the class that stands there, nowhere where none does. ``pixels`` are not looked
        at."""
        mask = self._mapping.apply(read_mask(self._file, window, self._mapping.source, self._facts, self._numbers))
        classes = np.arange(1, self.legend.num_classes + 1)
        found: npt.NDArray[np.float32] = (mask[None] == classes[:, None, None]).astype(np.float32)
        return found


class Predictions:
    """A folder of class rasters."""

    def __init__(self, options: LabelOptions, folder: Path) -> None:
        """:class:`SourceError` for a folder without rasters, :class:`LegendError` without a legend."""
        self._options, self._folder = options, folder
        self._files = stems_below(folder, Problems(skip=False)) if folder.is_dir() else {}
        if not self._files:
            raise SourceError(f"{folder}: no class raster in it (PNG or TIFF)")
        legend_file = find_legend_file(folder)
        if legend_file is None:
            raise LegendError(
                f"{folder}: no legend.json or classes.json here or in a parent folder: what its numbers mean; "
                '{"classes": ["road", "building"]} is enough'
            )
        self._own, self.numbers = read_values(legend_file)
        target = self._own if options.legend is None else load_legend(options.legend)
        self.mapping = load_legend_map(self._own, target, options.legend_map)
        self.legend: Legend = target

    @property
    def called(self) -> str:
        """What records call them: the folder's name, and a hash of the files."""
        seen = hashlib.sha256()
        for stem, file in sorted(self._files.items()):
            seen.update(f"{stem} {digest(file)}\n".encode())
        return f"predictions {self._folder.resolve().name} {seen.hexdigest()[:16]}"

    def of(self, patch: str, image: Path, facts: Facts) -> RasterReader:
        """The raster of an image; :class:`SourceError` where there is none, or one of another size."""
        file = next((self._files[stem] for stem in _stems(composed(patch)) if stem in self._files), None)
        if file is None:
            raise SourceError(f"{image}: no class raster in {self._folder} is called {Path(patch).name}, or …_mask")
        own = read_mask_info(file, self._options.max_megapixels)
        if (own.height, own.width) != (facts.height, facts.width):
            size = f"{facts.height}×{facts.width}"
            raise SourceError(f"{file}: {own.height}×{own.width} px, but its image {image} has {size}; resample it")
        if lies_elsewhere(facts, own):
            raise SourceError(f"{file}: lies on other ground than its image {image}, by CRS and transform")
        return RasterReader(file, read_info(file, self._options.max_megapixels), self.mapping, self.numbers)


def _stems(patch: str) -> Iterator[str]:
    """What the raster of an image may be called."""
    folder, slash, name = patch.rpartition("/")
    for affix in (PLAIN, *OF_MASKS):
        yield f"{folder}{slash}{affix.beginning}{name}{affix.ending}"
