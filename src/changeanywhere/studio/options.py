"""Options of ``changeanywhere studio``. Neither torch nor Gradio here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from changeanywhere.diffusion.options import refuse_index
from changeanywhere.errors import require
from changeanywhere.limits import check_limits
from changeanywhere.storage import check_out

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class StudioOptions:
    """Options of ``changeanywhere studio``."""

    source: Path | None = None
    """Folder of single-date tiles to choose from; default: the example tiles of the package."""
    legend: str | None = None
    """Legend of the source, a name or file; default: legend.json or classes.json there or in a parent folder."""
    legend_map: Path | None = None
    """YAML file, class of the tiles → class of the model, as generate takes it."""
    model: str = "mini"
    """mini, or a model folder."""
    segmenter: str = "mini-segmenter"
    """Network that reads what was painted, and that proposes masks of images without any: mini-segmenter or a
    folder."""
    out: Path = Path("studio-sets")
    """Folder of the sets that are kept, each in a folder of its own; the page reviews no other folder."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than 127.0.0.1 lets other machines in, without a password."""
    port: int = 7860
    """Port to listen on; 0 = any that is free."""
    max_upload_mb: int = 16
    """Largest file that the page takes, MB."""
    device: str | None = None
    """cpu, cuda, …; default: cuda where there is one. Of several GPUs CUDA_VISIBLE_DEVICES=1 before the command takes
    the second."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        check_limits(self)
        require(bool(self.host.strip()), "host", self.host, "an address of this machine, 127.0.0.1")
        require(0 <= self.port <= 65_535, "port", self.port, "0 to 65535")
        require(1 <= self.max_upload_mb <= 1024, "max_upload_mb", self.max_upload_mb, "1 to 1024 MB")
        require(
            self.legend is None or self.source is not None, "legend", self.legend, "with source, whose legend it is"
        )
        require(self.legend_map is None or self.source is not None, "legend_map", str(self.legend_map), "with source")
        refuse_index(self.device)
        check_out(self.out, self.tiles)

    @property
    def tiles(self) -> Path:
        """The folder of tiles."""
        return self.source or Path(str(resources.files("changeanywhere") / "assets" / "examples"))
