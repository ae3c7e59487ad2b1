#!/usr/bin/env python3
"""Writes tests/data/golden/bilstm.safetensors and bigru.safetensors: those mixers from torch.nn.LSTM and torch.nn.GRU,
one small bidirectional network a head, for weights by the rule of timm_logits.py (model name: the case's). Needs torch."""
import pathlib
import sys

import torch
from safetensors.numpy import save_file

from timm_logits import rule, weight

# (name after the mixer's, dim, heads, hidden)
CASES = [("_12_3_4", 12, 3, 4), ("_12_2_5", 12, 2, 5)]
KINDS = {"bilstm": (torch.nn.LSTM, 4), "bigru": (torch.nn.GRU, 3)}  # and gates
BATCH, TOKENS = 2, 7


def mixer(kind, gates, name, dim, heads, hidden):
    width, rows = dim // heads, gates * hidden
    w = lambda part, *shape: weight(name, part, shape).double()
    ih, hh = w("rnn.weight_ih", 2, heads, rows, width), w("rnn.weight_hh", 2, heads, rows, hidden)
    bias_ih, bias_hh = w("rnn.bias_ih", 2, heads, rows), w("rnn.bias_hh", 2, heads, rows)
    out, out_bias = w("head_proj.weight", heads, width, 2 * hidden), w("head_proj.bias", heads, width)
    x = rule(name + "/x", (BATCH, TOKENS, dim), 0.0, 1.5).double()
    u = torch.nn.functional.linear(x, w("pre.weight", dim, dim), w("pre.bias", dim))
    results = []
    for h in range(heads):
        rnn = kind(width, hidden, batch_first=True, bidirectional=True).double()
        for direction, suffix in enumerate(("", "_reverse")):
            rnn.load_state_dict({"weight_ih_l0" + suffix: ih[direction, h], "weight_hh_l0" + suffix: hh[direction, h],
                                 "bias_ih_l0" + suffix: bias_ih[direction, h],
                                 "bias_hh_l0" + suffix: bias_hh[direction, h]}, strict=False)
        y, _ = rnn(u[:, :, h * width:(h + 1) * width])
        results.append(torch.nn.functional.linear(y, out[h], out_bias[h]))
    taps = torch.cat(results, dim=2)
    return taps, torch.nn.functional.linear(taps, w("proj.weight", dim, dim), w("proj.bias", dim))


def main():
    folder = pathlib.Path(__file__).parent.parent / "data" / "golden"
    for mixer_name, (kind, gates) in KINDS.items():
        golden = {}
        with torch.inference_mode():
            for name, *sizes in CASES:
                heads, output = mixer(kind, gates, mixer_name + name, *sizes)
                golden[mixer_name + name + ".heads"] = heads.float().numpy()
                golden[mixer_name + name + ".output"] = output.float().numpy()
        save_file(golden, folder / (mixer_name + ".safetensors"))


if __name__ == "__main__":
    sys.exit(main())
