#!/usr/bin/env python3
"""Ours and PyTorch's times row by row, alternating, into one table. `./run bench` starts it.

Every measured line is appended to OUT/results.jsonl at once and is never lost; OUT/table.md is made anew from the
whole file. A run is cut into slots by --only, or by --budget and then --resume. Only the standard library is used.
"""
import argparse
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
from pathlib import Path

from peer import Link, Peer, kill_all, run_lines
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


def interrupted(*_):
    kill_all()
    raise KeyboardInterrupt


class Comparison:
    def __init__(self, args):
        self.args, self.begin = args, time.time()
        self.bench, self.peer, self.links = shlex.split(args.bench), None, {}
        tiny = ["bench.tiny=true"] if args.tiny else []
        self.ours = tiny + [f"bench.samples={args.samples}", f"bench.sample_s={args.sample_s}", "--json"]
        if args.device:
            self.ours += ["--device", args.device]
        self.theirs = ["--samples", str(args.samples), "--sample-s", str(args.sample_s)] + ["--tiny"] * args.tiny
        listed, code, err = run_lines(self.bench + ["row", "list", "--json"], 60)
        if code:
            fail(f"{args.bench} row list: {err}")
        self.rows = {row["row"]: row for row in listed}
        self.chosen = args.only or list(self.rows)
        for name in self.chosen + (args.autotune or []):
            if name not in self.rows:
                fail(f"there is no row '{name}'; rows: {', '.join(self.rows)}", 2)
        if args.list:
            return  # nothing is made
        try:
            self.results = Results(args.out)
        except OSError as error:
            fail(f"--out {args.out}: {error}", 2)
        self.failed = []
        self.run = time.strftime("%Y-%m-%dT%H:%M:%S") + f"-{os.getpid()}"
        if args.resume and self.results.latest_run():
            self.run = self.results.latest_run()

    def left(self):
        return (math.inf if self.args.budget is None else self.args.budget) - (time.time() - self.begin)

    def most(self):
        """Seconds that a command may take."""
        return max(0.1, min(self.args.timeout, self.left()))

    def environment(self):
        """Starts the peer; without one only ours is timed."""
        told = {}
        if not self.args.no_peer:
            self.peer = Peer(self.args.peer)
            if self.peer.error is None:
                lines, error = self.peer.ask(["--check"] + list(self.rows), self.args.timeout)
                told = lines[0] if lines else {}
                self.peer.error = told.get("err") or error
        if self.peer is None or self.peer.error:
            say(f"no peer, only ours is timed: {self.peer.error if self.peer else '--no-peer'}")
            if self.peer:
                self.peer.stop()
            self.peer = None
        self.modes = told.pop("modes", {})
        known = list(dict.fromkeys(mode for modes in self.modes.values() for mode in modes))
        for mode in self.args.modes or []:
            if self.peer and mode not in known:
                fail(f"no row has a mode '{mode}'; modes: {', '.join(known)}", 2)
        gpu = query(["name", "driver_version", "power.limit", "clocks.max.sm"])
        if not self.results.of(run=self.run, what="begin"):
            self.results.append({"run": self.run, "what": "begin", "date": time.strftime("%Y-%m-%d"), "gpu": gpu,
                                 "commit": next(iter(self.rows.values())).get("commit"), "cpus": os.cpu_count(),
                                 "peer": told if self.peer else None})
        self.results.append({"run": self.run, "what": "command", "command": "./run bench " + " ".join(self.args.words)})

    def modes_of(self, name):
        """The peer's modes of a row that are wanted and that this run has not tried."""
        modes, wanted = self.modes.get(name, []), self.args.modes or []
        if set(wanted) & set(modes):
            modes = [m for m in modes if m in wanted]
        if self.args.autotune is not None and name not in self.args.autotune:
            modes = [m for m in modes if m != "max-autotune"]
        tried = [l.get("mode") for l in self.results.of(run=self.run, row=name, who="torch")]
        return [m for m in modes if m not in tried]

    def agree(self):
        """Both sides' logits of the same weights and images must be equal but for roundings."""
        with tempfile.TemporaryDirectory() as folder:
            lines, code, err = run_lines(self.bench + ["agree", f"bench.file={folder}/agree"] + self.ours,
                                         self.args.timeout)
            if code:
                fail(f"bench agree: {err}")
            lines, err = self.peer.ask(["agree", "--model", lines[0]["model"], "--io", lines[0]["io"]] + self.theirs,
                                       self.args.timeout)
        if err or not lines:
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

    def open(self, names):
        """Starts to get the peer's rows ready, every mode in a process of its own, all at once."""
        for name in names:
            self.links[name] = {mode: Link(self.peer, [name, "--modes", mode, "--hold"] + self.theirs)
                                for mode in self.modes_of(name)}

    def settle(self):
        """Waits until what was opened is ready or has failed: nothing else runs while a side is timed."""
        begin = time.time()
        for name, links in self.links.items():
            for mode, link in list(links.items()):
                told = []
                error = link.lines("ready", max(0.1, self.most() - (time.time() - begin)), told.append)
                if error:
                    for line in told or [{"who": "torch", "row": name, "what": "error", "mode": mode, "err": error}]:
                        self.keep(line, name, 0, begin)
                    links.pop(mode).close()
                else:
                    say(f"{name}: PyTorch {mode} is ready after {time.time() - begin:.0f} s")

    def keep(self, line, row, number, begin, watch=None):
        self.results.append({"run": self.run, "round": number, **line, "smi": watch and watch.summary(),
                             "seconds": round(time.time() - begin, 1)})
        if line.get("what") == "error":
            say(f"{row}: {line.get('who')} {line.get('mode', '')}: {line.get('err')}")

    def time_ours(self, name, number):
        watch, begin, threads = Watch(), time.time(), self.rows[name].get("threads")
        cpus = sorted(os.sched_getaffinity(0))[:threads] if threads and not self.args.tiny else None
        lines, code, err = run_lines(self.bench + ["row", name] + self.ours, self.most(),
                                     lambda line: self.keep(line, name, number, begin, watch), cpus)
        watch.stop()
        if code:
            self.keep({"who": "occam", "row": name, "what": "error", "err": err}, name, number, begin)
        return code == 0 and bool(lines)

    def time_theirs(self, name, number, modes):
        """Milliseconds by mode."""
        medians = {}
        for mode in modes:
            link, watch, begin = self.links[name][mode], Watch(), time.time()

            def keep(line):
                self.keep(line, name, number, begin, watch)
                if line.get("ms"):
                    medians[mode] = line["ms"]

            link.say("again")
            error = link.lines("timed", self.most(), keep)
            watch.stop()
            if mode not in medians:
                if error:
                    self.keep({"who": "torch", "row": name, "what": "error", "mode": mode, "err": error}, name, number,
                              begin)
                self.links[name].pop(mode).close()
        return medians

    def time_row(self, name):
        """Ours, the peer in all its modes, then both again, the peer in its best mode and the one it is judged by; ours
        at last, so that the peer's times lie between two of ours."""
        known = [l["round"] for l in self.results.of(run=self.run, row=name) if "round" in l]
        first, modes = max(known, default=0) + 1, list(self.links.get(name, {}))
        for number in range(first, first + self.args.rounds + (1 if modes else 0)):
            if self.left() <= 0:
                return
            if not self.time_ours(name, number):
                self.failed.append(name)
                return
            if not modes or number == first + self.args.rounds:
                continue
            medians = self.time_theirs(name, number, modes)
            best, against = min(medians, key=medians.get, default=None), self.rows[name]["against"]
            modes = [mode for mode in medians if mode in (best, against)] if number == first else list(medians)
            for mode in set(self.links[name]) - set(modes):
                self.links[name].pop(mode).close()
        self.results.append({"run": self.run, "what": "row_done", "row": name})

    def todo(self):
        """Rows that this run has not timed, or not in all modes that are wanted."""
        done = {l["row"] for l in self.results.of(run=self.run, what="row_done")}
        names = [n for n in self.chosen if n not in done or self.modes_of(n)]
        for name in [n for n in names if self.rows[n]["on_gpu"] and not self.args.tiny]:
            if query(["name"]) is None:
                say(f"{name} is left out: there is no GPU")
                names.remove(name)
        return names

    def work(self):
        self.environment()
        names, cost = self.todo(), {}
        for line in self.results.lines:  # what a row took before, so that one is not begun that will not end in time
            if "seconds" in line and line.get("run") != self.run:
                row = cost.setdefault((line["run"], line.get("row")), {})
                row[line["who"], line.get("mode"), line["round"]] = line["seconds"]
        agreed = self.peer is None or self.results.of(run=self.run, row="agree", agrees=True)
        while names:
            group, names = names[:self.args.at_once], names[self.args.at_once:]
            if self.left() > 0 and self.peer:
                say(f"getting {', '.join(group)} ready")
                self.open(group)
            if not agreed:
                self.agree()
                agreed = True
            self.settle()
            for name in group:
                known = [sum(v.values()) for (_, row), v in cost.items() if row == name]
                if self.left() <= 0 or (known and known[-1] > self.left()):
                    say(f"the budget ends before {name}; go on with --resume")
                    return
                say(name)
                self.time_row(name)
                for link in self.links.pop(name, {}).values():
                    link.close()


def names(text):
    found = list(dict.fromkeys(name for name in text.split(",") if name))
    if not found:
        raise argparse.ArgumentTypeError("it names nothing")
    return found


def within(kind, least, most=math.inf):
    """A finite number from `least` to `most`."""
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is no {'whole ' * (kind is int)}number")
        if not (least <= value <= most and value < math.inf):  # not a number is neither
            raise argparse.ArgumentTypeError(f"{text} is not {'at least ' if most == math.inf else 'from '}{least:g}"
                                             + f" to {most:g}" * (most != math.inf))
        return value
    return read


def main():
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names, metavar="ROW[,ROW]", help="these rows, in this order")
    parser.add_argument("--rounds", type=within(int, 1), default=2, help="how often the peer's is timed, ours before and after (2)")
    parser.add_argument("--budget", type=within(float, 0), metavar="SECONDS", help="begin no row that would end after it")
    parser.add_argument("--resume", action="store_true", help="go on with the latest run: what was tried there is not tried again")
    parser.add_argument("--modes", type=names, metavar="MODE[,MODE]", help="of the peer's modes only these; all of a row that has none of them")
    parser.add_argument("--autotune", type=names, metavar="ROW[,ROW]", help="the peer's max-autotune in these rows alone")
    parser.add_argument("--at-once", type=within(int, 1), metavar="N", default=4, help="rows that the peer gets ready together (4)")
    parser.add_argument("--no-peer", action="store_true", help="time ours alone")
    parser.add_argument("--samples", type=within(int, 3, 1000), default=20, help="timings a round of which the median is taken (20)")
    parser.add_argument("--sample-s", type=within(float, 0, 60), default=0.1, help="least seconds of a timing (0.1)")
    parser.add_argument("--timeout", type=within(float, 0.1, 1e6), default=900,
                        help="most seconds of one side of a row, or of getting rows ready (900)")
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
        kill_all()
        text = write_table(comparison.rows, comparison.results, args.out)
    print(text, end="")
    say(f"results are in {comparison.results.path}, the table in {args.out / 'table.md'}")
    if comparison.failed:
        fail(f"ours could not be timed: {', '.join(comparison.failed)}")


if __name__ == "__main__":
    main()
