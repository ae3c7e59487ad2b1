#!/usr/bin/env python3
"""Writes tests/data/golden/timm_vit.safetensors: logits of timm's models for weights and images made by a rule.

Needs torch, timm, numpy and safetensors (made with torch 2.15 and timm 1.0.31). Only results are stored: the
rule below, repeated in tests/nn/rule.h, makes the same weights and images bit for bit in both languages.

    key(text)    FNV-1a, 64 bits, of the UTF-8 bytes
    bits(k, i)   SplitMix64's finaliser of k + (i + 1) * 0x9E3779B97F4A7C15
    u(k, i)      (bits >> 40) / 2^23 - 1, in [-1, 1)
    value        float32(offset + a * u), computed in double

    parameter `name` of `model`, flat index i: k = key("model/name")
      *.bias                        offset 0, a = 0.1
      cls_token dist_token pos_embed    0,     0.5
      other tensors of one axis         1,     0.25      (norm weights)
      other tensors                     0,     sqrt(3 / fan_in), fan_in = product of all sizes but the first
    images: k = key("model/images"), offset 0, a = sqrt(3)
"""
import math
import pathlib
import sys

import numpy as np
import timm
import torch
from safetensors.numpy import save_file
from timm.layers import resample_abs_pos_embed

SIZES = ("tiny", "small", "base")
MODELS = [pattern.format(size) for size in SIZES
          for pattern in ("vit_{}_patch16_224", "deit_{}_patch16_224", "deit_{}_distilled_patch16_224")]
MODELS.append("deit_base_patch16_384")
BATCH = 2
# Position embeddings: (prefix tokens, old grid, new grid), 4 channels.
GRIDS = [(1, 14, 24), (2, 14, 7), (1, 24, 14), (1, 7, 16)]


def rule(text, shape, offset, a):
    key = 0xCBF29CE484222325
    for byte in text.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        i = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
        z = np.uint64(key) + i * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return torch.from_numpy((offset + a * u).astype(np.float32).reshape(shape))


def weight(model, name, shape):
    if name.endswith("bias"):
        offset, a = 0.0, 0.1
    elif name in ("cls_token", "dist_token", "pos_embed"):
        offset, a = 0.0, 0.5
    elif len(shape) == 1:
        offset, a = 1.0, 0.25
    else:
        offset, a = 0.0, math.sqrt(3.0 / math.prod(shape[1:]))
    return rule(f"{model}/{name}", shape, offset, a)


def main():
    golden = {}
    with torch.inference_mode():
        for name in MODELS:
            model = timm.create_model(name, pretrained=False).eval()
            model.load_state_dict({k: weight(name, k, tuple(v.shape)) for k, v in model.state_dict().items()})
            size = int(name.rsplit("_", 1)[1])
            images = rule(f"{name}/images", (BATCH, 3, size, size), 0.0, math.sqrt(3.0))
            logits = model.double()(images.double())
            golden["logits." + name] = logits.float().numpy()
            count = sum(p.numel() for p in model.parameters())
            golden["parameters." + name] = np.array([count], dtype=np.int64)
            print(f"{name}: {count} parameters, RMS of the logits {logits.square().mean().sqrt():.4f}", flush=True)
        for prefix, old, new in GRIDS:
            name = f"pos_embed.{prefix}.{old}.{new}"
            embed = rule(name, (1, prefix + old * old, 4), 0.0, 1.0)
            golden[name] = resample_abs_pos_embed(embed, [new, new], num_prefix_tokens=prefix).numpy()
    path = pathlib.Path(__file__).parent.parent / "data" / "golden" / "timm_vit.safetensors"
    save_file(golden, path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
