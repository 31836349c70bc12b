# %% [markdown]
# # 3. Evaluate
#
# What the detector of the second notebook finds on tiles that it has not seen, and whether it could have cheated.

# %%
# %%bash
# changeanywhere evaluate --detector runs/detector/detector tutorial --listing held_out.txt --out scores

# %% [markdown]
# **Beside nothing a score says nothing.** Calling every pixel changed has this F1:

# %%
import json
from pathlib import Path

import numpy as np

import changeanywhere as ca

names = set(Path("held_out.txt").read_text().split())
pairs = ca.load_pairs("tutorial")
held_out = [pair for pair in (pairs[i] for i in range(len(pairs))) if f"{pair.key}.png" in names]
share = np.mean([pair.change_mask.mean() for pair in held_out])
print(f"{2 * share / (1 + share):.3f}, at {share:.2%} changed pixels")

# %% [markdown]
# Pairs without any change show what it makes up:

# %%
scores = json.loads(Path("scores/evaluation.json").read_text())
quiet = {pair.key for pair in held_out if not pair.change_mask.any()}
wrong = {key: scores["pairs"][key]["false_positives"] for key in sorted(quiet)}
print(wrong)

# %% [markdown]
# ## Pictures

# %%
import io

import torch
from IPython.display import Image as Shown
from PIL import Image

net = ca.load_detector("runs/detector/detector").eval()
rows = []
for pair in held_out[::6]:
    both = torch.from_numpy(np.stack([pair.image_t1, pair.image_t2])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found = net(both[:1], both[1:]).argmax(1)[0].numpy() == 1
    shown = np.zeros((*found.shape, 3), np.uint8)
    shown[found & pair.change_mask] = 255
    shown[found & ~pair.change_mask] = (222, 80, 60)
    shown[~found & pair.change_mask] = (70, 130, 230)
    rows.append(np.hstack([pair.image_t1, pair.image_t2, shown]))
buffer = io.BytesIO()
Image.fromarray(np.vstack(rows)).save(buffer, "JPEG", quality=80)
Shown(buffer.getvalue(), format="jpeg", width=520)

# %% [markdown]
# White: found. Red: called changed and is not. Blue: missed.
#
# ## Could it have cheated?
#
# A detector that recognises painted pixels needs no change. `evaluate --pairs` tries to tell the painted image from the real one by a
# linear probe; 0.5 is chance:

# %%
# %%bash
# changeanywhere evaluate --pairs tutorial --max-pairs 60 --out quality

# %% [markdown]
# **What this does not show**: that the detector finds real change. For that it takes a real benchmark, `changeanywhere benchmark`.
