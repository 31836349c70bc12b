# %% [markdown]
# # 1. Generate
#
# A hundred pairs from the example tiles and the embedded model, under CC0-1.0 and CC-BY-4.0; two minutes on two CPU cores.
# Needs `pip install 'changeanywhere[evaluate]'`.

# %%
import io
from pathlib import Path

import numpy as np
from IPython.display import Image as Shown
from PIL import Image

import changeanywhere as ca


def show(picture, width=760):
    """A picture as a small JPEG."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return Shown(buffer.getvalue(), format="jpeg", width=width)


# %% [markdown]
# ## A tile and its mask

# %%
source = ca.load_source("examples")
tile = source[0]
print(len(source), "tiles;", ", ".join(source.legend.names))
show(Image.fromarray(np.hstack([tile.image, source.legend.colorize(tile.mask)])), 512)

# %% [markdown]
# ## A change on the mask
#
# Something appears or vanishes; the change mask is where the class differs.

# %%
plan = ca.simulate(tile.mask, source.legend, seed=1)
event = plan.events[0]
print(event.kind, source.legend.name_of(event.from_class), "→", source.legend.name_of(event.to_class), event.area, "px")

# %% [markdown]
# ## The second date

# %%
pipe = ca.ChangePairPipeline.from_pretrained("mini")
image_t2 = pipe(tile.image, plan.mask_t2, plan.change_mask, seed=1)
border = Image.fromarray((plan.change_mask * 255).astype(np.uint8)).convert("RGB")
show(Image.fromarray(np.hstack([tile.image, image_t2, np.asarray(border)])))

# %% [markdown]
# ## A set
#
# The command plans, paints, writes and reports. `--config tutorial` is a recipe of the package (`changeanywhere recipes tutorial` prints it).

# %%
# %%bash
# changeanywhere generate --config tutorial --source examples --out tutorial

# %% [markdown]
# ## What is in it
#
# `tutorial/report.html` shows it in a browser. A contact sheet, evenly spaced, not chosen:

# %%
from changeanywhere.pairs.sheet import contact_sheet

show(contact_sheet(Path("tutorial"), count=6))

# %%
pairs = ca.load_pairs("tutorial")
pair = pairs[0]
print(len(pairs), "pairs;", pair.image_t1.shape, pair.image_t1.dtype, pair.change_mask.dtype)
print({name: pair.metadata[name] for name in ("key", "kind", "licence", "real_date", "change_ratio")})

# %% [markdown]
# The card has the licences and the credit that a copy of the set must carry:

# %%
card = Path("tutorial/README.md").read_text()
print(card[card.index("## Licences") :].split("Method:")[0].strip())
