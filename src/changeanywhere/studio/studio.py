"""What all pages of one studio share: options, networks, sessions, jobs. No Gradio here."""

from __future__ import annotations

import threading

from changeanywhere.legend import Legend
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.sources.options import DEFAULT_TILE_SIZE
from changeanywhere.studio.jobs import Jobs
from changeanywhere.studio.options import StudioOptions
from changeanywhere.studio.painting import Networks
from changeanywhere.studio.session import Sessions


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
        self.jobs = Jobs(self._base(), options.out, info.legend, options.segmenter)
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

    def _base(self) -> list[str]:
        """What every ``generate`` of this studio says."""
        options = self.options
        given: dict[str, object] = {"source": options.source or "examples", "model": options.model}
        given |= {"legend": options.legend, "legend-map": options.legend_map, "device": options.device}
        size = self.networks.info.tile_size
        given |= {"tile-size": None if size == DEFAULT_TILE_SIZE else size}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
