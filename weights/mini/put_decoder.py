"""Make a first stage of an embedded one and a decoder that train_decoder.py saved; half precision, codebook float32.

    python put_decoder.py --first-stage mini/first_stage --decoder runs/decoder/step-003339.safetensors --out out

Several decoders that started from the same weights are averaged with --weights (one per file, sum 1).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from changeanywhere.models.folder import cast_keeping_codebook, load_first_stage, save_first_stage


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-stage", type=Path, required=True)
    parser.add_argument("--decoder", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    parts = [load_file(file) for file in arguments.decoder]
    mean = {k: sum(w * p[k] for w, p in zip(arguments.weights, parts, strict=True)) for k in parts[0]}
    first_stage = load_first_stage(arguments.first_stage)
    missing = first_stage.vq_model.load_state_dict(mean, strict=False)
    if missing.unexpected_keys:
        raise SystemExit(f"{arguments.decoder}: not a decoder ({missing.unexpected_keys[:3]} …)")
    cast_keeping_codebook(first_stage, torch.float16)
    save_first_stage(first_stage, arguments.out)


if __name__ == "__main__":
    main()
