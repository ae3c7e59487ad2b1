#!/usr/bin/env python3
"""The peer of `bench row`: the same work in PyTorch and timm, as fast as PyTorch's own switches make it.

    torch_bench.py ROW [--modes eager,default]   times a row; one JSON line a mode, with bench's keys
    torch_bench.py agree --model F --io F        logits of the model and images that `bench agree` wrote
    torch_bench.py --check ROW...                versions and the rows' modes; fails when something is missing
    torch_bench.py --serve SOCKET                compare.py's: see serve.py

Modes of compiled rows are torch.compile's (eager: none). Rows with an LSTM choose its form instead: wide, one LSTM
over all channels as the method's authors run it (block-diagonal by masks), or heads, one small LSTM a head; graph:
the whole step captured in a CUDA graph.
"""
import argparse
import gc
import math
import os
import sys
import time

from serve import serve
from torch_rows import KINDS, MODELS, ROW, Job, VisionTransformer, out, timm, torch


def measure(step, device, samples, seconds):
    """Milliseconds a step of each sample; a sample is a run of steps between two events."""
    on_gpu = device.type == "cuda"

    def run(n):
        if on_gpu:
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
        begin = time.perf_counter()
        for _ in range(n):
            step()
        if not on_gpu:
            return 1e3 * (time.perf_counter() - begin)
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop)

    run(5 if on_gpu else 2)  # compiles, and records graphs
    n = max(1, math.ceil(1e3 * seconds / max(run(2) / 2, 1e-4)))
    run(n)
    return [run(n) / n for _ in range(samples)]


def spread(times):
    times = sorted(times)
    return [times[int(share * (len(times) - 1) + 0.5)] for share in (0.5, 0.1, 0.9)]


class Timer:
    """A row in one mode: made ready once, timed as often as it is asked to."""

    def __init__(self, row, mode, args):
        self.begin, self.mode, self.args = time.perf_counter(), mode, args
        self.job = Job(row, args)
        gc.collect()  # what the mode before left would count as this one's memory
        if not self.job.cpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.step, self.passes = KINDS[self.job.kind][0](self.job, mode)

    def compile(self):
        for _ in range(0 if self.mode == "eager" else 2):
            self.step()
        if not self.job.cpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return dict(what="ready", set_up_s=round(time.perf_counter() - self.begin, 1))

    def time(self):
        job, args = self.job, self.args
        if job.threads:  # that many cores, too; compiling may use all
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), sorted(os.sched_getaffinity(0))[:job.threads])
        times = measure(self.step, job.device, args.samples, args.sample_s)
        ms, low, high = spread(times)
        line = dict(who="torch", row=job.row, what=job.kind, model=job.name, B=job.batch, mode=self.mode, ms=ms,
                    ms_low=low, ms_high=high, samples_ms=[round(t, 5) for t in times], img_s=1e3 * job.batch / ms)
        if self.passes:
            line["mfu_tflops"] = self.passes * job.flops * job.batch / ms / 1e9
        if hasattr(job, "forward"):
            line["fwd_ms"] = spread(measure(job.forward, job.device, args.samples, args.sample_s))[0]
        if not job.cpu:
            line["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        return dict(**line, device=device_name(job.device), threads=torch.get_num_threads() if job.cpu else None)


def modes_of(row):
    fields = ROW.fullmatch(row)
    if not fields or fields["kind"] not in KINDS:
        sys.exit(f"torch_bench.py: no row '{row}'; kinds: {', '.join(KINDS)}")
    return KINDS[fields["kind"]][1]


def check(args):
    """Versions, and the modes of each row that is named."""
    gpu = torch.cuda.is_available()
    out(who="torch", what="peer", torch=torch.__version__, timm=timm.__version__,
        cudnn=torch.backends.cudnn.version() if gpu else None,
        device=torch.cuda.get_device_name() if gpu else "cpu", modes={row: modes_of(row) for row in args.rows})


def device_name(device):
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def agree(args):
    """Both sides' logits of the same weights and images: relative RMS distances, judged by compare.py."""
    from safetensors.torch import load_file
    io = load_file(args.io)
    weights = load_file(args.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.tiny:
        dim, side, patch = weights["cls_token"].shape[-1], io["images"].shape[-1], weights["patch_embed.proj.weight"]
        model = VisionTransformer(img_size=side, patch_size=patch.shape[-1], embed_dim=dim, depth=2, num_heads=2,
                                  num_classes=weights["head.weight"].shape[0])
    else:
        model = timm.create_model(MODELS["S"])
    model.load_state_dict(weights)
    model = model.to(device).eval()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = io["images"].to(device)

    def logits(dtype):
        with torch.inference_mode():
            return model.to(dtype)(images.to(dtype)).float().cpu()

    theirs = {"f32": logits(torch.float32), "bf16": logits(torch.bfloat16)}

    def apart(a, b):
        return float((a - b).norm() / b.norm())

    out(who="torch", row="agree", what="agree", depth=len(model.blocks),
        f32=apart(io["logits_f32"], theirs["f32"]), bf16=apart(io["logits_bf16"].float(), theirs["bf16"]),
        torch_bf16_f32=apart(theirs["bf16"], theirs["f32"]),
        occam_bf16_f32=apart(io["logits_bf16"].float(), io["logits_f32"]))


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--modes", default="", help="of the row's modes only these, comma-separated")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--sample-s", type=float, default=0.1, help="least seconds of a sample")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that a row works")
    parser.add_argument("--model", help="agree: the model's safetensors")
    parser.add_argument("--io", help="agree: images and bench's logits")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--serve", metavar="SOCKET", help="wait for such command lines there: see serve.py")
    parser.add_argument("--hold", action="store_true",
                        help="get the row's mode ready, say so, then time it for every line of standard input")
    args = parser.parse_args(words)
    if args.serve:
        return serve(args.serve, main)
    if args.check:
        return check(args)
    if len(args.rows) != 1:
        parser.error("which row?")
    row = args.rows[0]
    if row == "agree":
        return agree(args)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    modes = modes_of(row)
    wanted = [m for m in args.modes.split(",") if m]
    if not set(wanted) <= set(modes):
        parser.error(f"row {row} has the modes {', '.join(modes)}")
    timed = 0
    for mode in wanted or modes:
        try:
            if args.hold:  # rows are made ready side by side
                workers = os.cpu_count() if mode == "max-autotune" else max(1, os.cpu_count() // 4)
                os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(workers))
            timer = Timer(row, mode, args)
            if args.hold:
                out(**timer.compile())
                for _ in sys.stdin:
                    out(**timer.time())
                    out(what="timed")
            else:
                out(**timer.time())
            timed += 1
        except Exception as error:  # one mode that fails must not cost the others
            out(who="torch", row=row, what="error", mode=mode, err=f"{type(error).__name__}: {error}"[:400])
        timer = None
        torch.compiler.reset()
    return 0 if timed else 1


if __name__ == "__main__":
    sys.exit(main())
