"""The file of all measured lines, and the table made of it. compare.py uses it."""
import json
import math
import os
import statistics
import sys


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Results:
    """The file of all lines. A line that was cut off by a kill is passed over, and ends before the next begins."""

    def __init__(self, folder):
        self.path = folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = []
        text = self.path.read_bytes() if self.path.exists() else b""
        for number, raw in enumerate(text.split(b"\n"), 1):
            try:
                line = json.loads(raw) if raw.strip() else None
            except ValueError:
                say(f"{self.path}:{number}: not a whole line of JSON; passed over")
                continue
            if isinstance(line, dict):
                self.lines.append(line)
        self.torn = bool(text) and not text.endswith(b"\n")

    def append(self, line):
        with open(self.path, "ab") as file:
            file.write((b"\n" if self.torn else b"") + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.torn = False
        self.lines.append(line)

    def of(self, **wanted):
        return [l for l in self.lines if all(l.get(k) == v for k, v in wanted.items())]

    def latest_run(self):
        return next((l["run"] for l in reversed(self.lines) if "run" in l), None)


def pooled(lines):
    """Median, 10 % and 90 % over the samples of all rounds."""
    samples = sorted(s for l in lines for s in l.get("samples_ms") or [l["ms"]])
    return [samples[int(share * (len(samples) - 1) + 0.5)] for share in (0.5, 0.1, 0.9)]


def number(value):
    if value is None or not math.isfinite(value):
        return "-"
    digits = max(0, 3 - math.floor(math.log10(value)) - 1) if value > 0 else 0
    return f"{value:,.{min(digits, 4)}f}"


def row_cells(row, ours, theirs):
    ms, low, high = pooled(ours)
    last = ours[-1]
    modes = {}
    for line in theirs:
        modes.setdefault(line["mode"], []).append(line)
    medians = {mode: pooled(lines)[0] for mode, lines in modes.items()}
    best = min(medians, key=medians.get) if medians else None
    judged = row["against"] if row["against"] in medians else best
    ratio = medians[judged] / ms if judged else None
    must, peak = [], [last.get("peak_gb"), modes[best][-1].get("peak_gb") if best else None]
    if row["must"]:
        verdict = " met" if ratio is not None and ratio >= row["must"] else " **missed**"
        if ratio is None or (row["against"] and judged != row["against"]):
            verdict = ""  # what it is judged by was not timed
        must.append(f"{row['must']:g}x{' ' + row['against'] if row['against'] else ''}{verdict}")
    if row["must_own"] and "ratio_to_infer" in last:
        own = statistics.median(l["ratio_to_infer"] for l in ours)
        verdict = "met" if own <= row["must_own"] else "**missed**"
        must.append(f"{row['must_own']:g} of own inference: {own:.2f} {verdict}")
    if row["must_memory"] and None not in peak:
        must.append(f"memory{' met' if peak[0] <= peak[1] else ' **missed**'}")
    shown = f"{best} {number(medians[best])}" if best else "-"
    if judged != best:
        shown += f"; {judged} {number(medians[judged])}"
    share = last.get("share_of_ceiling")
    return [row["row"], f"{number(ms)} ({number(low)}-{number(high)})", shown, "-" if ratio is None else f"{ratio:.2f}",
            "; ".join(must) or "-", number(last.get("floor_ms")), number(last.get("op_traffic_ms")),
            "-" if share is None else f"{100 * share:.1f} %", f"{number(peak[0])} / {number(peak[1])}"], medians


def write_table(rows, results, out):
    """From the newest run of every row in which both sides were timed, else from the newest of ours."""
    table = ["| row | ours ms (10-90 %) | PyTorch's best, ms | ratio | must | floor ms | op traffic ms "
             "| of matmul ceiling | peak GB ours / PyTorch |", "|---|---|---|---|---|---|---|---|---|"]
    modes, runs = [], []
    for name, row in rows.items():
        timed = [l for l in results.lines if l.get("row") == name and l.get("ms") and "run" in l]
        both = [l["run"] for l in timed if l.get("who") == "torch"
                and any(o["run"] == l["run"] and o.get("who") == "occam" for o in timed)]
        ours = [l["run"] for l in timed if l.get("who") == "occam"]
        if not ours:
            continue
        run = (both or ours)[-1]
        runs.append(run)
        lines = [l for l in timed if l["run"] == run]
        sides = ([l for l in lines if l["who"] == who] for who in ("occam", "torch"))
        cells, medians = row_cells(row, *sides)
        table.append("| " + " | ".join(cells) + " |")
        if medians:
            by_time = sorted(medians.items(), key=lambda item: item[1])
            modes.append(f"| {name} | " + ", ".join(f"{mode} {number(ms)}" for mode, ms in by_time) + " |")
    text = "\n".join(table) + "\n"
    if modes:
        text += "\n| row | PyTorch by mode, ms |\n|---|---|\n" + "\n".join(modes) + "\n"
    for run in dict.fromkeys(runs):
        text += "\n" + describe_run(run, results)
    (out / "table.md").write_text(text)
    return text


def describe_run(run, results):
    begin = (results.of(run=run, what="begin") or [{}])[-1]
    peer, gpu = begin.get("peer") or {}, begin.get("gpu")
    commands = dict.fromkeys(f"`{line['command']}`" for line in results.of(run=run, what="command"))
    text = f"Run of {begin.get('date', run)}, commit {begin.get('commit') or 'unknown'}, {', '.join(commands)}: "
    text += f"{gpu[0]}, driver {gpu[1]}, power limit {gpu[2]}" if gpu else f"CPU with {begin.get('cpus')} cores"
    if peer:
        text += f"; torch {peer.get('torch')}, timm {peer.get('timm')}, cuDNN {peer.get('cudnn')}"
    ceilings = [l for l in results.of(run=run, who="occam") if l.get("precision") == "bf16" and "ceiling_tflops" in l]
    if ceilings:
        text += (f"; ceilings {statistics.median(l['ceiling_tflops'] for l in ceilings):.0f} TFLOP/s and "
                 f"{statistics.median(l['ceiling_tb_s'] for l in ceilings):.2f} TB/s")
    smi = [l["smi"] for l in results.of(run=run) if l.get("smi")]
    if smi:
        held = sorted({reason for s in smi for reason in s["held_back_by"]})
        text += (f"; while timing SM clock {min(s['sm_mhz_least'] for s in smi):.0f} to "
                 f"{max(s['sm_mhz'] for s in smi):.0f} MHz, at most {max(s['power_w'] or 0 for s in smi):.0f} W and "
                 f"{max(s['temperature_c'] or 0 for s in smi):.0f} C, held back by {', '.join(held) or 'nothing'}")
    for line in results.of(run=run, row="agree"):
        if "f32" in line:
            text += f"; outputs apart by {line['f32']:.1g} in f32 and {line['bf16']:.1g} in bf16"
    return text + ".\n"
