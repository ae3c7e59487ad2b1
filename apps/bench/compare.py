#!/usr/bin/env python3
"""Ours and PyTorch's times row by row, alternating, into one table. `./run bench` starts it.

Every measured line is appended to OUT/results.jsonl at once and is never lost; OUT/table.md is made anew from the
whole file. A run is cut into slots by --only, or by --budget and then --resume. Only the standard library is used.
"""
import argparse
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SMI = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active"]
# Bits of clocks_event_reasons.active; 1 is an idle GPU, 2 a clock that an application asked for.
REASONS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)",
           0x80: "power brake"}


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def fail(text, code=1):
    print(f"bench: error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


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


class Watch:
    """Reads clocks, power, temperature and what holds the clocks back while a command runs; sets nothing."""

    def __init__(self):
        self.samples, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while True:
            sample = query(SMI)
            if sample is None:
                return
            self.samples.append(sample)
            if self.over.wait(0.5):
                return

    def summary(self):
        self.over.set()
        self.thread.join(timeout=15)

        def column(i):
            values = []
            for sample in self.samples:
                try:
                    values.append(float(sample[i].split()[0]))
                except (ValueError, IndexError):
                    pass
            return values

        sm, memory, power, heat = (column(i) for i in range(4))
        if not sm:
            return None
        bits = 0
        for sample in self.samples:
            try:
                bits |= int(sample[4], 16)
            except (ValueError, IndexError):
                pass
        return {"sm_mhz": statistics.median(sm), "sm_mhz_least": min(sm), "mem_mhz": max(memory, default=None),
                "power_w": max(power, default=None), "temperature_c": max(heat, default=None),
                "held_back_by": [name for bit, name in REASONS.items() if bits & bit]}


def query(fields):
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [v.strip() for v in done.stdout.splitlines()[0].split(",")] if done.returncode == 0 and done.stdout else None


def run_lines(command, timeout):
    """The JSON lines a command prints, its exit code, and the end of what it said. Time's up: what was there."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
    except OSError as error:
        return [], 127, str(error)
    try:
        out, err = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code, err = 124, f"took more than {timeout:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = []
    for text in out.splitlines():
        try:
            line = json.loads(text) if text.startswith("{") else None
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
    return lines, code, err.strip()[-500:]


class Comparison:
    def __init__(self, args):
        self.args = args
        self.bench, self.peer = shlex.split(args.bench), shlex.split(args.peer)
        self.results = Results(args.out)
        tiny = ["bench.tiny=true"] if args.tiny else []
        self.ours = tiny + [f"bench.samples={args.samples}", f"bench.sample_s={args.sample_s}", "--json"]
        if args.device:
            self.ours += ["--device", args.device]
        self.theirs = ["--samples", str(args.samples), "--sample-s", str(args.sample_s)] + ["--tiny"] * args.tiny
        listed, code, err = run_lines(self.bench + ["row", "list", "--json"], 60)
        if code:
            fail(f"{args.bench} row list: {err}")
        self.rows = {row["row"]: row for row in listed}
        self.chosen = list(self.rows)
        if args.only:
            self.chosen = [name for name in args.only.split(",") if name]
            for name in self.chosen:
                if name not in self.rows:
                    fail(f"there is no row '{name}'; rows: {', '.join(self.rows)}", 2)
        self.failed = []
        self.run = time.strftime("%Y-%m-%dT%H:%M:%S") + f"-{os.getpid()}"
        if args.resume and self.results.latest_run():
            self.run = self.results.latest_run()

    def measure(self, side, command, row, round_number):
        """Runs one side of a row and keeps its lines."""
        watch, begin = Watch(), time.time()
        lines, code, err = run_lines(command, self.args.timeout)
        smi, seconds = watch.summary(), round(time.time() - begin, 1)
        if code and not any(l.get("what") == "error" for l in lines):
            lines.append({"who": side, "row": row, "what": "error", "err": err})
        for line in lines:
            self.results.append({"run": self.run, "round": round_number, **line, "smi": smi, "seconds": seconds})
            if line.get("what") == "error":
                say(f"{row}: {side} {line.get('mode', '')}: {line.get('err')}")
        return [l for l in lines if l.get("ms")]

    def environment(self):
        peer, code, err = run_lines(self.peer + ["--check"], 120) if not self.args.no_peer else ([], 1, "--no-peer")
        has_peer = code == 0 and bool(peer)
        if not has_peer:
            say(f"no peer, only ours is timed: {peer[0].get('err') if peer else err or 'it says nothing'}")
        gpu = query(["name", "driver_version", "power.limit", "clocks.max.sm"])
        commit = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True,
                                text=True).stdout.strip()
        if not self.results.of(run=self.run, what="begin"):
            self.results.append({"run": self.run, "what": "begin", "date": time.strftime("%Y-%m-%d"), "commit": commit,
                                 "gpu": gpu, "peer": peer[0] if has_peer else None, "cpus": os.cpu_count(),
                                 "command": "./run bench " + " ".join(self.args.words)})
        return has_peer

    def agree(self):
        """Both sides' logits of the same weights and images must be equal but for roundings."""
        prefix = str(self.args.out / "agree")
        lines, code, err = run_lines(self.bench + ["agree", f"bench.file={prefix}"] + self.ours, self.args.timeout)
        if code:
            fail(f"bench agree: {err}")
        lines, code, err = run_lines(self.peer + ["agree", "--model", lines[0]["model"], "--io", lines[0]["io"]] +
                                     self.theirs, self.args.timeout)
        if code or not lines:
            fail(f"the peer could not compute the outputs to be compared: {err or lines}")
        line = lines[0]
        # Some 11 roundings a block follow one another (norms, products, probabilities, residual sums). They add up
        # like a random walk, twice: once on each side. In f32 a sum of up to 1,536 terms rounds as its root.
        steps = 11 * line["depth"]
        line["allowed_bf16"] = 2**-8 * math.sqrt(2 * steps)
        line["allowed_f32"] = 2**-24 * math.sqrt(2 * steps * 1536)
        line["agrees"] = line["bf16"] <= line["allowed_bf16"] and line["f32"] <= line["allowed_f32"]
        self.results.append({"run": self.run, **line})
        told = (f"f32 {line['f32']:.2g} (allowed {line['allowed_f32']:.2g}), bf16 {line['bf16']:.2g} "
                f"(allowed {line['allowed_bf16']:.2g})")
        if not line["agrees"]:
            fail(f"the outputs of the two sides differ: {told}; nothing is timed")
        say(f"outputs agree: {told}")

    def warm(self, at_once):
        """Fills PyTorch's compile cache. Not for max-autotune, which would time kernels side by side."""
        say(f"compiling the peer's rows, {at_once} at a time")
        command = self.peer + ["--modes", "default,reduce-overhead", "--samples", "1", "--sample-s", "0"]
        with ThreadPoolExecutor(at_once) as pool:
            for name, (_, code, err) in zip(self.chosen, pool.map(
                    lambda name: run_lines(command + [name] + ["--tiny"] * self.args.tiny, self.args.timeout),
                    self.chosen)):
                if code and "has the modes" not in err:
                    say(f"{name}: {err}")

    def time_row(self, name, has_peer):
        """Ours, the peer in all its modes, then both again: the peer in its best mode, and the one it is judged by."""
        modes = self.args.modes
        for number in range(1, self.args.rounds + 1):
            if not self.measure("occam", self.bench + ["row", name] + self.ours, name, number):
                self.failed.append(name)
                return
            if not has_peer:
                continue
            timed = self.measure("torch", self.peer + [name] + (["--modes", modes] if modes else []) + self.theirs,
                                 name, number)
            if timed:
                best = min(timed, key=lambda l: l["ms"])["mode"]
                against = self.rows[name]["against"]
                modes = ",".join(dict.fromkeys([best] + ([against] if against and number == 1 else [])))
        self.results.append({"run": self.run, "what": "row_done", "row": name})

    def work(self):
        begin, has_peer = time.time(), self.environment()
        if has_peer and not self.results.of(run=self.run, row="agree", agrees=True):
            self.agree()
        if has_peer and self.args.warm:
            self.warm(self.args.warm)
        cost = {}
        for line in self.results.lines:  # what a row took before, so that one is not begun that will not end in time
            if "seconds" in line:
                cost.setdefault((line.get("run"), line.get("row")), {})[(line["who"], line["round"])] = line["seconds"]
        for name in self.chosen:
            if self.results.of(run=self.run, what="row_done", row=name):
                continue
            known = [sum(v.values()) for (run, row), v in cost.items() if row == name and run != self.run]
            left = (self.args.budget or math.inf) - (time.time() - begin)
            if left <= 0 or (known and known[-1] > left):
                say(f"the budget ends before {name}; go on with --resume")
                break
            if self.rows[name]["on_gpu"] and not self.args.tiny and query(["name"]) is None:
                say(f"{name} is left out: there is no GPU")
                continue
            say(name)
            self.time_row(name, has_peer)


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
        verdict = "" if ratio is None else " met" if ratio >= row["must"] else " **missed**"
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
            "; ".join(must) or "-", number(last.get("floor_ms")), "-" if share is None else f"{100 * share:.1f} %",
            f"{number(peak[0])} / {number(peak[1])}"], medians


def write_table(rows, results, out):
    """From the newest run of every row in which both sides were timed, else from the newest of ours."""
    table = ["| row | ours ms (10-90 %) | PyTorch's best, ms | ratio | must | floor ms | of matmul ceiling "
             "| peak GB ours / PyTorch |", "|---|---|---|---|---|---|---|---|"]
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
    text = f"Run of {begin.get('date', run)}, commit {begin.get('commit') or 'unknown'}, `{begin.get('command', '')}`: "
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


def main():
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW[,ROW]", help="these rows, in this order")
    parser.add_argument("--rounds", type=int, default=2, help="ours and the peer's are timed so often in turn (2)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no row that would end after it")
    parser.add_argument("--resume", action="store_true", help="go on with the latest run: rows done there are done")
    parser.add_argument("--modes", default="", help="the peer's modes, comma-separated, instead of all of a row")
    parser.add_argument("--warm", type=int, metavar="N", help="first compile the peer's rows, N at a time")
    parser.add_argument("--no-peer", action="store_true", help="time ours alone")
    parser.add_argument("--samples", type=int, default=20, help="timings a round of which the median is taken (20)")
    parser.add_argument("--sample-s", type=float, default=0.1, help="least seconds of a timing (0.1)")
    parser.add_argument("--timeout", type=float, default=900, help="most seconds of one side of a row (900)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of results (runs/bench)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--table", action="store_true", help="only make table.md from the results")
    parser.add_argument("--list", action="store_true", help="names of the rows")
    parser.add_argument("--device", help="ours: auto, cpu, cuda or cuda:N")
    parser.add_argument("--bench", default="build/bin/bench", help="the app")
    parser.add_argument("--peer", default=f"{shlex.quote(sys.executable)} {shlex.quote(str(HERE / 'torch_bench.py'))}",
                        help="the command that times the peer")
    args = parser.parse_args()
    hidden = {"--bench": 2, "--peer": 2}
    args.words, words = [], sys.argv[1:]
    while words:
        word = words.pop(0)
        if word in hidden:
            words.pop(0)
        else:
            args.words.append(word)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    comparison = Comparison(args)
    if args.list:
        print("\n".join(comparison.rows))
        return
    try:
        if not args.table:
            comparison.work()
    except KeyboardInterrupt:
        say("stopped; what was timed is kept, go on with --resume")
        sys.exit(1)
    finally:
        text = write_table(comparison.rows, comparison.results, args.out)
    print(text, end="")
    say(f"results are in {comparison.results.path}, the table in {args.out / 'table.md'}")
    if comparison.failed:
        fail(f"ours could not be timed: {', '.join(comparison.failed)}")


if __name__ == "__main__":
    main()
