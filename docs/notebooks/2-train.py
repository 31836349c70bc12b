# %% [markdown]
# # 2. Train a detector
#
# On the set of the first notebook, without three of its twelve tiles. Two to five minutes of one CPU core.

# %%
import json
from pathlib import Path

records = [json.loads(line) for line in Path("tutorial/metadata.jsonl").read_text().splitlines()]
tiles = sorted({record["source_key"] for record in records})
held_out = set(tiles[::4])
print("held out:", ", ".join(sorted(held_out)))
for name, wanted in (("train.txt", False), ("held_out.txt", True)):
    keys = [record["key"] for record in records if (record["source_key"] in held_out) == wanted]
    Path(name).write_text("".join(f"{key}.png\n" for key in keys))
    print(name, len(keys), "pairs")

# %% [markdown]
# Tiles, not pairs, are held out: pairs of one tile look alike. Eight of the twelve tiles are of one city, though, so that this is an easy test;
# real sets are split by scene.
#
# `--detector.val-split null`: no validation pairs choose the weights, the last ones are taken, so that nothing leaks from what is held out.

# %%
# %%bash
# changeanywhere train detector --detector.name siam_unet_lite0 --detector.backbone-weights package \
#     --detector.pairs tutorial --detector.train-list train.txt --detector.val-split null \
#     --detector.num-steps 200 --detector.warmup-steps 20 --detector.batch-size 4 --detector.crop-size 160 \
#     --detector.change-crops 0.7 --out runs/detector

# %% [markdown]
# The same command again resumes. The loss:

# %%
for line in Path("runs/detector/training/detector/metrics.jsonl").read_text().splitlines():
    record = json.loads(line)
    print(f"step {record['step']:.0f}: loss {record['loss']:.3f}")
