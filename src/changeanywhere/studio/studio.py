"""What all pages of one studio share: options, networks, sessions, jobs. No Gradio here."""

from __future__ import annotations

import threading
from pathlib import Path

from changeanywhere.legend import Legend, builtin_legends, load_legend
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.sources.options import DEFAULT_TILE_SIZE
from changeanywhere.studio.jobs import Jobs
from changeanywhere.studio.options import StudioOptions
from changeanywhere.studio.painting import Networks
from changeanywhere.studio.session import Sessions
from changeanywhere.studio.snippets import as_words


class Studio:
    """Opened from options; :class:`InputError` for a source, model or segmenter that is none."""

    def __init__(self, options: StudioOptions) -> None:
        options.check()
        self.options = options
        self.networks = Networks(options.model, options.segmenter, options.device)
        info = self.networks.info
        opened = SourceOptions(legend=options.legend, tile_size=info.tile_size, bands=info.bands, stretch=info.stretch)
        source = open_source(options.tiles, opened).with_legend(info.legend, options.legend_map)
        self.sessions = Sessions(source, options.tiles)
        self.jobs = Jobs(as_words(self.said()), options.out, info.legend, options.segmenter)
        self._loading = threading.Lock()
        self._begun = False

    @property
    def legend(self) -> Legend:
        """The model's: all masks are in it."""
        return self.networks.info.legend

    def load_beside(self, delay: float = 1.0) -> None:
        """Load the networks while the first page is looked at; the second page has nothing to wait for. ``delay``:
        seconds, in which a browser draws the page."""
        with self._loading:
            if self._begun:
                return
            self._begun = True
        timer = threading.Timer(delay, self.networks.load)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """Stop what runs, remove what sessions left."""
        self.jobs.close()
        self.sessions.close()

    def said(self, place: Path | None = None) -> dict[str, str | int]:
        """Options of every ``generate`` of this studio, by name. ``place``: folder of a tile that was dropped on the
        page, whose mask is in the model's classes."""
        options, size = self.options, self.networks.info.tile_size
        given: dict[str, object] = {"source": options.source or "examples", "model": options.model}
        given |= {"legend": options.legend, "legend_map": options.legend_map}
        if place is not None:
            given |= {"source": place, "legend": self._legend_name(), "legend_map": None}
        given |= {"device": options.device, "tile_size": None if size == DEFAULT_TILE_SIZE else size}
        return {n: v if isinstance(v, int) else str(v) for n, v in given.items() if v is not None}

    def _legend_name(self) -> str:
        """The model's legend, as commands name it."""
        own = self.legend.to_dict()
        names = (name for name in builtin_legends() if load_legend(name).to_dict() == own)
        return next(names, str(Path(self.options.model) / "legend.json"))
