"""Small things that several test files share: a tiny model, a tiny source."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from changeanywhere.legend import Legend, load_legend

if TYPE_CHECKING:
    import torch

    from changeanywhere.models.first_stage import FirstStage
    from changeanywhere.models.folder import Model

HEAVY = ("torch", "diffusers", "accelerate", "torchmetrics")
HAS_TORCH = find_spec("torch") is not None
LIGHT = (
    "bands containers damage events folders layers legend like limits paper places raster_matrix rasters",
    "reference reported_kinds shipped sources",
)
"""Files that begin without torch; of their tests those that need it are skipped where there is none."""
if not HAS_TORCH:
    light = {f"test_{name}.py" for names in LIGHT for name in names.split()}
    collect_ignore = [file.name for file in Path(__file__).parent.glob("test_*.py") if file.name not in light]

SHARED = Path(__file__).parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads of PyTorch (one: the nets are tiny)")
    parser.addoption("--bf16", choices=("native", "off"), default="native", help="off: as on a processor without it")


def pytest_configure(config: pytest.Config) -> None:
    if not HAS_TORCH:
        return
    import torch

    torch.set_num_threads(config.getoption("--threads"))
    if config.getoption("--bf16") == "off":  # no setting of a library reaches this: it asks the processor itself
        torch.cpu._is_avx512_bf16_supported = lambda: False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with _skipped_without_torch():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with _skipped_without_torch():
        return (yield)


@contextmanager
def _skipped_without_torch() -> Iterator[None]:
    """On a Python for which no torch is installed what asks for it is skipped, and said so (``make test-light``)."""
    try:
        yield
    except ModuleNotFoundError as error:  # of a package that is not there, or of its version
        if HAS_TORCH or (error.name or "").partition(".")[0] not in HEAVY:
            raise
        pytest.skip(f"needs {error.name}")


def shared(*parts: str) -> Path:
    """A folder beside the checkout; skips the test where it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data is not there: {path}")
    return path


def tiny_model(mask_dropout: float = 0.1) -> Model:
    """Random networks of a few thousand weights over the legend of the embedded model."""
    import torch

    from changeanywhere.models.denoiser import Denoiser, MaskEncoder, build_unet
    from changeanywhere.models.first_stage import FirstStage, build_vq_model
    from changeanywhere.models.folder import Model, noise_schedule

    torch.manual_seed(0)
    first_stage = FirstStage(
        build_vq_model([8, 8, 8], 1, num_codes=32, norm_groups=4, mid_attention=False),
        latent_mean=[0.1, -0.2, 0.3],
        latent_std=[0.5, 1.5, 2.0],
    )
    unet = build_unet([8, 16], 1, mask_channels=4, attention_levels=[1], head_dim=8, norm_groups=4)
    denoiser = Denoiser(unet, MaskEncoder(num_classes=7, mask_channels=4))
    return Model(first_stage, denoiser, noise_schedule(), load_legend("mini"), mask_dropout, tile_size=64)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk."""
    from changeanywhere.models.folder import save_model

    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_model(), folder)
    return folder


@pytest.fixture
def unquantised(monkeypatch: pytest.MonkeyPatch) -> None:
    """First stages decode latents as they are: which of two codes is nearer may hang on the order of a sum."""
    import torch

    from changeanywhere.models.first_stage import FirstStage

    def as_it_is(self: FirstStage, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return raw, torch.zeros_like(raw[:, 0], dtype=torch.int64)

    monkeypatch.setattr(FirstStage, "quantise", as_it_is)


def write_source(folder: Path, num_tiles: int = 6, size: int = 64, legend: Legend | None = None) -> Path:
    """``images/`` + ``masks/``: bare land with a road, a pond and a house; colours follow the mask."""
    legend = legend or load_legend("mini")
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number in range(num_tiles):
        mask = np.full((size, size), 1, np.uint8)
        mask[:, 6:12] = 2
        mask[20 + number : 36 + number, 40:56] = 3
        mask[6:16, 24:34] = 4
        mask[-3:] = 0
        noise = rng.integers(-20, 20, (size, size, 3))
        image = np.clip(legend.palette()[mask].astype(int) // 2 + 60 + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"tile_{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"tile_{number}.png")
    legend.save(folder / "legend.json")
    return folder


@pytest.fixture
def source_folder(tmp_path: Path) -> Path:
    """A fresh small source."""
    return write_source(tmp_path / "source")
