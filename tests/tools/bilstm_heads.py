#!/usr/bin/env python3
"""Writes tests/data/golden/bilstm.safetensors: the bilstm mixer from torch.nn.LSTM, one small bidirectional LSTM a
head, for weights by the rule of timm_logits.py (model name: the case's). Needs torch."""
import pathlib
import sys

import torch
from safetensors.numpy import save_file

from timm_logits import rule, weight

# (name, dim, heads, hidden)
CASES = [("bilstm_12_3_4", 12, 3, 4), ("bilstm_12_2_5", 12, 2, 5)]
BATCH, TOKENS = 2, 7


def mixer(name, dim, heads, hidden):
    width = dim // heads
    w = lambda part, *shape: weight(name, part, shape).double()
    ih, hh = w("rnn.weight_ih", 2, heads, 4 * hidden, width), w("rnn.weight_hh", 2, heads, 4 * hidden, hidden)
    bias_ih, bias_hh = w("rnn.bias_ih", 2, heads, 4 * hidden), w("rnn.bias_hh", 2, heads, 4 * hidden)
    out, out_bias = w("head_proj.weight", heads, width, 2 * hidden), w("head_proj.bias", heads, width)
    x = rule(name + "/x", (BATCH, TOKENS, dim), 0.0, 1.5).double()
    u = torch.nn.functional.linear(x, w("pre.weight", dim, dim), w("pre.bias", dim))
    results = []
    for h in range(heads):
        lstm = torch.nn.LSTM(width, hidden, batch_first=True, bidirectional=True).double()
        for direction, suffix in enumerate(("", "_reverse")):
            lstm.load_state_dict({"weight_ih_l0" + suffix: ih[direction, h], "weight_hh_l0" + suffix: hh[direction, h],
                                  "bias_ih_l0" + suffix: bias_ih[direction, h],
                                  "bias_hh_l0" + suffix: bias_hh[direction, h]}, strict=False)
        y, _ = lstm(u[:, :, h * width:(h + 1) * width])
        results.append(torch.nn.functional.linear(y, out[h], out_bias[h]))
    taps = torch.cat(results, dim=2)
    return taps, torch.nn.functional.linear(taps, w("proj.weight", dim, dim), w("proj.bias", dim))


def main():
    golden = {}
    with torch.inference_mode():
        for case in CASES:
            heads, output = mixer(*case)
            golden[case[0] + ".heads"], golden[case[0] + ".output"] = heads.float().numpy(), output.float().numpy()
    save_file(golden, pathlib.Path(__file__).parent.parent / "data" / "golden" / "bilstm.safetensors")


if __name__ == "__main__":
    sys.exit(main())
