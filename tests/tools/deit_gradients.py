#!/usr/bin/env python3
"""Writes tests/data/golden/deit_gradients.safetensors: gradients of a whole DeiT-Tiny with attention, bilstm or mamba2
in every block, from PyTorch in double, for weights and an image by the rule of timm_logits.py (model name: the case's).

The loss is the sum of the logits times a cotangent by the same rule. Of each parameter's gradient are kept its norm and
16 values, evenly spaced from the first on. The mixers are written from their formulas (nn/mixers/*/README.md): bilstm is one
torch.nn.LSTM a head, mamba2 its recurrence. Needs torch, timm, numpy and safetensors.
"""
import math
import pathlib
import sys

import numpy as np
import timm
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F

from timm_logits import rule, weight

KEPT = 16


class Grouped(nn.Module):
    """Every head's own linear layer: [..., h, in] -> [..., h, out]."""

    def __init__(self, heads, into, out, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, out, into))
        self.bias = nn.Parameter(torch.empty(heads, out)) if bias else None

    def forward(self, x):
        y = torch.einsum("bthi,hoi->btho", x, self.weight)
        return y if self.bias is None else y + self.bias


class Holder(nn.Module):
    """Parameters by name and shape."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))


class BiLstm(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        w = self.w = dim // heads
        self.heads = heads
        self.pre = nn.Linear(dim, dim)
        self.rnn = Holder(weight_ih=(2, heads, 4 * w, w), weight_hh=(2, heads, 4 * w, w), bias_ih=(2, heads, 4 * w),
                          bias_hh=(2, heads, 4 * w))
        self.head_proj = Grouped(heads, 2 * w, w, True)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, **_):
        u = self.pre(x)
        states = []
        for h in range(self.heads):
            weights = {}
            for direction, suffix in enumerate(("", "_reverse")):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    weights[name + "_l0" + suffix] = getattr(self.rnn, name)[direction, h]
            lstm = nn.LSTM(self.w, self.w, batch_first=True, bidirectional=True).double()
            y, _ = torch.func.functional_call(lstm, weights, (u[..., h * self.w:(h + 1) * self.w],))
            states.append(y)
        return self.proj(self.head_proj(torch.stack(states, 2)).flatten(2))


class Mamba2(nn.Module):
    STATE, CONV, EPS = 128, 4, 1e-5

    def __init__(self, dim, heads):
        super().__init__()
        w, n = dim // heads, self.STATE
        self.dim, self.heads, self.w = dim, heads, w
        mixed = dim + 2 * n
        self.ssm = Holder(conv_weight=(2, mixed, self.CONV), conv_bias=(2, mixed), dt_bias=(2, heads), a_log=(2, heads),
                          skip=(2, heads), norm_weight=(2, heads, w))
        self.ssm.in_proj = nn.Linear(dim, 2 * (dim + mixed), bias=False)
        self.ssm.dt_proj = nn.Linear(dim, 2 * heads, bias=False)
        self.head_proj = Grouped(heads, 2 * w, w, False)
        self.proj = nn.Linear(dim, dim)

    def direction(self, tokens, r):
        """One direction of tokens that are in its order: [b,t,h,w]."""
        p, d, n, h, w = self.ssm, self.dim, self.STATE, self.heads, self.w
        b, t, _ = tokens.shape
        wide = 2 * d + 2 * n
        z, x, B, C = (tokens @ p.in_proj.weight[r * wide:(r + 1) * wide].T).split([d, d, n, n], -1)
        dt = F.softplus(tokens @ p.dt_proj.weight[r * h:(r + 1) * h].T + p.dt_bias[r])
        mixed = torch.cat([x, B, C], -1).transpose(1, 2)
        mixed = F.conv1d(F.pad(mixed, (self.CONV - 1, 0)), p.conv_weight[r].unsqueeze(1), p.conv_bias[r], groups=d + 2 * n)
        x, B, C = F.silu(mixed.transpose(1, 2)).split([d, n, n], -1)
        x = x.unflatten(-1, (h, w))
        decay = torch.exp(-torch.exp(p.a_log[r]) * dt)
        state = torch.zeros(b, h, n, w, dtype=tokens.dtype)
        out = []
        for i in range(t):
            new = torch.einsum("bh,bn,bhw->bhnw", dt[:, i], B[:, i], x[:, i])
            state = decay[:, i, :, None, None] * state + new
            out.append(torch.einsum("bhnw,bn->bhw", state, C[:, i]) + p.skip[r][:, None] * x[:, i])
        y = torch.stack(out, 1).flatten(2) * F.silu(z)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.EPS)
        return y.unflatten(-1, (h, w)) * p.norm_weight[r]

    def forward(self, x, **_):
        there, back = self.direction(x, 0), self.direction(x.flip(1), 1).flip(1)
        return self.proj(self.head_proj(torch.cat([there, back], -1)).flatten(2))


def main():
    golden = {}
    for case, mixer in (("attention", None), ("bilstm", BiLstm), ("mamba2", Mamba2)):
        model = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
        if mixer:
            for block in model.blocks:
                block.attn = mixer(192, 3)
        model.load_state_dict({k: weight(case, k, tuple(v.shape)) for k, v in model.state_dict().items()})
        model.double()
        image = rule(f"{case}/images", (1, 3, 224, 224), 0.0, math.sqrt(3.0)).double()
        logits = model(image)
        (logits * rule(f"{case}/cotangent", (1, 1000), 0.0, 1.0).double()).sum().backward()
        golden[case + ".logits"] = logits.detach().float().numpy()
        for name, p in model.named_parameters():
            g = p.grad.flatten()
            kept = g[::max(1, g.numel() // KEPT)][:KEPT]
            golden[f"{case}.{name}"] = torch.cat([g.norm()[None], kept]).float().numpy()
        print(case, len(golden), "norm of the first gradient", golden[f"{case}.cls_token"][0], flush=True)
    out = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / "data" / "golden" / "deit_gradients.safetensors"
    save_file(golden, out)


if __name__ == "__main__":
    sys.exit(main())
