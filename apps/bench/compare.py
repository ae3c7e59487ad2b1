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
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from table import Results, say, write_table

HERE = Path(__file__).resolve().parent
SMI = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active",
       "utilization.gpu"]
# Bits of clocks_event_reasons.active; 1 is an idle GPU, 2 a clock that an application asked for.
REASONS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)",
           0x80: "power brake"}


def fail(text, code=1):
    print(f"bench: error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


class Watch:
    """Reads clocks, power, temperature and what holds the clocks back while a command runs; sets nothing."""

    def __init__(self):
        self.samples, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.over.wait(0.3):
            sample = query(SMI)
            if sample is None:
                return
            self.samples.append(sample)

    def stop(self):
        self.over.set()
        self.thread.join(timeout=15)

    def summary(self):
        """Of what was read while the GPU was busy, since the last call."""
        taken, self.samples = self.samples, []

        def column(i):
            values = []
            for sample in taken:
                try:
                    if float(sample[5].split()[0]) >= 50:
                        values.append(float(sample[i].split()[0]))
                except (ValueError, IndexError):
                    pass
            return values

        sm, memory, power, heat = (column(i) for i in range(4))
        if not sm:
            return None
        bits = 0
        for sample in taken:
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


RUNNING = set()


def kill(process):
    try:  # its group: compilers that it started too
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_all():
    for process in list(RUNNING):
        kill(process)


def interrupted(*_):
    kill_all()
    raise KeyboardInterrupt


def run_lines(command, timeout, keep=lambda line: None, env=None):
    """The JSON lines a command prints, each given to `keep` at once, its exit code, and the end of what it said."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True, env=env)
    except OSError as error:
        return [], 127, str(error)
    RUNNING.add(process)
    lines, said = [], []

    def read():
        for text in process.stdout:
            try:
                line = json.loads(text) if text.startswith("{") else None
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
                keep(line)

    readers = [threading.Thread(target=read), threading.Thread(target=lambda: said.append(process.stderr.read()))]
    for reader in readers:
        reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        code = 124
    finally:
        kill(process)
        RUNNING.discard(process)
        for reader in readers:
            reader.join()
    return lines, code, f"took more than {timeout:.0f} s" if code == 124 else said[0].strip()[-500:]


class Comparison:
    def __init__(self, args):
        self.args, self.begin = args, time.time()
        self.bench, self.peer = shlex.split(args.bench), shlex.split(args.peer)
        self.results = Results(args.out)
        tiny = ["bench.tiny=true"] if args.tiny else []
        self.ours = tiny + [f"bench.samples={args.samples}", f"bench.sample_s={args.sample_s}", "--json"]
        if args.device:
            self.ours += ["--device", args.device]
        modes = ["--modes", args.modes] if args.modes else []
        self.theirs = modes + ["--samples", str(args.samples), "--sample-s", str(args.sample_s)]
        self.theirs += ["--tiny"] * args.tiny
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

    def left(self):
        return (self.args.budget or math.inf) - (time.time() - self.begin)

    def most(self):
        """Seconds that a command may take."""
        return max(0.1, min(self.args.timeout, self.left()))

    def measure(self, side, command, row, round_number):
        """Runs one side of a row and keeps its lines as they come."""
        watch, begin = Watch(), time.time()

        def keep(line):
            self.results.append({"run": self.run, "round": round_number, **line, "smi": watch.summary(),
                                 "seconds": round(time.time() - begin, 1)})
            if line.get("what") == "error":
                say(f"{row}: {side} {line.get('mode', '')}: {line.get('err')}")

        lines, code, err = run_lines(command, self.most(), keep)
        watch.stop()
        if code and not any(l.get("what") == "error" for l in lines):
            keep({"who": side, "row": row, "what": "error", "err": err})
        return [l for l in lines if l.get("ms")]

    def environment(self):
        peer, code, err = run_lines(self.peer + ["--check"], 120) if not self.args.no_peer else ([], 1, "--no-peer")
        has_peer = code == 0 and bool(peer)
        if not has_peer:
            say(f"no peer, only ours is timed: {peer[0].get('err') if peer else err or 'it says nothing'}")
        gpu = query(["name", "driver_version", "power.limit", "clocks.max.sm"])
        if not self.results.of(run=self.run, what="begin"):
            self.results.append({"run": self.run, "what": "begin", "date": time.strftime("%Y-%m-%d"), "gpu": gpu,
                                 "commit": next(iter(self.rows.values())).get("commit"), "cpus": os.cpu_count(),
                                 "peer": peer[0] if has_peer else None})
        self.results.append({"run": self.run, "what": "command", "command": "./run bench " + " ".join(self.args.words)})
        return has_peer

    def agree(self):
        """Both sides' logits of the same weights and images must be equal but for roundings."""
        with tempfile.TemporaryDirectory() as folder:
            lines, code, err = run_lines(self.bench + ["agree", f"bench.file={folder}/agree"] + self.ours,
                                         self.args.timeout)
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

    def compile_row(self, name):
        # Without this every process would start a worker a core.
        workers = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, 2 * os.cpu_count() // self.args.warm))}
        begin = time.time()
        _, code, err = run_lines(self.peer + [name, "--warm"] + self.theirs, self.most(), env={**workers, **os.environ})
        say(f"{name}: compiled in {time.time() - begin:.0f} s" if code == 0 else f"{name}: {err}")

    def time_row(self, name, has_peer):
        """Ours, the peer in all its modes, then both again, the peer in its best mode and the one it is judged by; ours
        at last, so that the peer's times lie between two of ours."""
        known = [l["round"] for l in self.results.of(run=self.run, row=name) if "round" in l]
        first, modes = max(known, default=0) + 1, []
        for number in range(first, first + self.args.rounds + (1 if has_peer else 0)):
            if self.left() <= 0:
                return
            if not self.measure("occam", self.bench + ["row", name] + self.ours, name, number):
                self.failed.append(name)
                return
            if has_peer and number < first + self.args.rounds:
                timed = self.measure("torch", self.peer + [name] + self.theirs + modes, name, number)
                if timed and not modes:
                    best = min(timed, key=lambda l: l["ms"])["mode"]
                    against = self.rows[name]["against"]
                    modes = ["--modes", ",".join(dict.fromkeys([best] + ([against] if against else [])))]
        self.results.append({"run": self.run, "what": "row_done", "row": name, "modes": self.args.modes})

    def work(self):
        has_peer = self.environment()
        pool = ThreadPoolExecutor(max(1, self.args.warm))
        try:
            if has_peer and self.args.warm:
                say(f"compiling the peer's rows, {self.args.warm} at a time")
                pool.map(self.compile_row, self.chosen)
            if has_peer and not self.results.of(run=self.run, row="agree", agrees=True):
                self.agree()
            pool.shutdown()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_all()
            raise
        cost = {}
        for line in self.results.lines:  # what a row took before, so that one is not begun that will not end in time
            if "seconds" in line and line.get("run") != self.run:
                cost.setdefault((line["run"], line.get("row")), {})[(line["who"], line["round"])] = line["seconds"]
        for name in self.chosen:
            if self.results.of(run=self.run, what="row_done", row=name, modes=self.args.modes):
                continue
            known = [sum(v.values()) for (_, row), v in cost.items() if row == name]
            if self.left() <= 0 or (known and known[-1] > self.left()):
                say(f"the budget ends before {name}; go on with --resume")
                break
            if self.rows[name]["on_gpu"] and not self.args.tiny and query(["name"]) is None:
                say(f"{name} is left out: there is no GPU")
                continue
            say(name)
            self.time_row(name, has_peer)


def main():
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW[,ROW]", help="these rows, in this order")
    parser.add_argument("--rounds", type=int, default=2, help="how often the peer's is timed, ours before and after (2)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no row that would end after it")
    parser.add_argument("--resume", action="store_true", help="go on with the latest run: rows done there, in these modes, are done")
    parser.add_argument("--modes", default="", help="of the peer's modes only these, comma-separated; rows that have none of them: all")
    parser.add_argument("--warm", type=int, metavar="N", default=0,
                        help="first compile the peer's rows, N at a time, but for max-autotune")
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
        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, interrupted)
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
