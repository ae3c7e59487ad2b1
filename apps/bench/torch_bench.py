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
import copy
import gc
import json
import math
import os
import re
import sys
import time

from serve import serve

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that will fork must not start CUDA

COMPILED = ["eager", "default", "reduce-overhead", "max-autotune"]
MODELS = {"T": "deit_tiny_patch16_224", "S": "deit_small_patch16_224", "B": "deit_base_patch16_224"}
ROW = re.compile(r"(?P<kind>[a-z_]+?)(?:_(?P<model>T|S|B|demo))?_(?P<batch>\d+)(?:_(?P<threads>\d+)t)?")


def out(**line):
    print(json.dumps(line), flush=True)


try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    import timm
    from timm.models.vision_transformer import VisionTransformer
except ImportError as missing:
    out(what="error", err=f"the peer needs PyTorch and timm: {missing}")
    sys.exit(3)


class Job:
    """What a row asks for; `step` is what is timed."""

    def __init__(self, row, args):
        fields = ROW.fullmatch(row)
        self.row, self.args, self.kind = row, args, fields["kind"]
        self.key = fields["model"] or "S"
        self.batch = min(int(fields["batch"]), 4) if args.tiny else int(fields["batch"])
        self.cpu = self.kind.startswith("cpu_") or not torch.cuda.is_available()
        if self.cpu and not self.kind.startswith("cpu_") and not args.tiny:
            raise RuntimeError("PyTorch finds no GPU")
        self.device = torch.device("cpu" if self.cpu else "cuda")
        self.dtype = torch.float32 if self.cpu else torch.bfloat16
        self.threads = int(fields["threads"] or 0)
        if self.threads:
            torch.set_num_threads(self.threads)

    def autocast(self, dtype=None):
        return torch.autocast(self.device.type, dtype=dtype or self.dtype, enabled=not self.cpu)

    def model(self):
        if self.key == "demo":
            shape = dict(img_size=28, patch_size=4, in_chans=1, embed_dim=64, depth=6, num_heads=4, num_classes=10)
        elif self.kind == "small_train":
            shape = dict(img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3, num_classes=100)
        else:
            shape = None
        if self.args.tiny:
            tiny = dict(img_size=16, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=10)
            shape = {**(shape or {}), **tiny}
        torch.manual_seed(0)
        model = VisionTransformer(**shape) if shape else timm.create_model(MODELS[self.key])
        self.flops = flops(model)
        self.name = "vit" if shape else MODELS[self.key]
        return model.to(self.device)

    def images(self, model, dtype=torch.float32):
        side = model.patch_embed.img_size[0]
        channels = model.patch_embed.proj.in_channels
        return torch.randn(self.batch, channels, side, side, device=self.device, dtype=dtype)

    def labels(self, model):
        return torch.randint(0, model.num_classes, (self.batch,), device=self.device)


def flops(m):
    """Of one image's forward pass, a multiply-add as two; what bench counts."""
    d, patches = m.embed_dim, m.patch_embed.num_patches
    n = patches + 1
    hidden = m.blocks[0].mlp.fc1.out_features
    patch = m.patch_embed.proj.weight[0].numel()
    block = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * hidden
    return 2 * (patches * patch * d + len(m.blocks) * block + d * m.num_classes)


def compiled(fn, mode):
    return fn if mode == "eager" else torch.compile(fn, mode=mode)


def graphed(step):
    """The step as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# ---- rows: each returns the step to time and what one step costs relative to a forward pass


def infer(job, mode):
    model = job.model().eval().to(job.dtype)
    x = job.images(model, job.dtype)
    run = compiled(model, mode)

    def step():
        with torch.inference_mode():
            run(x)

    return step, 1


def train(job, mode):
    model = job.model().train()
    demo = job.key == "demo"
    # The demo's recipe clips and averages (apps/demo/teacher.yaml).
    average = copy.deepcopy(model) if demo else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    x, y = job.images(model), job.labels(model)
    run = compiled(model, mode)
    smoothing = 0.05 if demo else 0.1

    def step():
        if not job.cpu:
            torch.compiler.cudagraph_mark_step_begin()
        with job.autocast():
            loss = F.cross_entropy(run(x), y, label_smoothing=smoothing)
        loss.backward()
        if demo:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if demo:
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.001)

    return step, 3


class Profiled(nn.Module):
    """Forward with materialised attention maps and bench's 16 statistics of every row set, head and image."""

    def __init__(self, model, order):
        super().__init__()
        self.model, self.order = model, order
        self.prefix = model.num_prefix_tokens
        gh, gw = model.patch_embed.grid_size
        place = torch.stack(torch.meshgrid(torch.arange(gh), torch.arange(gw), indexing="ij"), -1).reshape(-1, 2)
        apart = (place[:, None] - place[None]).float()
        self.register_buffer("distance", apart.norm(dim=-1))
        for k in (3, 5):
            self.register_buffer(f"window{k}", (apart.abs().amax(-1) <= (k - 1) // 2).float())

    def statistics(self, p):
        n, nan = p.shape[-1], torch.full(p.shape[:-1], math.nan, device=p.device)
        h = -(p * (p + 1e-38).log()).sum(-1)
        rows = [(p < 1e-3).float().mean(-1), (p < 1 / n).float().mean(-1), h / math.log(n), h.exp(),
                (math.sqrt(n) - 1 / p.norm(dim=-1)) / (math.sqrt(n) - 1)]
        if self.order:
            s = p.sort(-1, descending=True).values
            place = torch.arange(n, device=p.device) + 0.5
            mass = s.cumsum(-1)
            rows += [1 - 2 * (s * place).sum(-1) / n]
            rows += [mass[..., min(k, n) - 1] for k in (1, 5, 10, math.ceil(n / 10))]
            rows += [((mass < 0.9).sum(-1) + 1).clamp(max=n) / n]
        else:
            rows += [nan] * 6
        to_patches = p[..., self.prefix:]
        patch_rows = to_patches[..., self.prefix:, :]

        def spatial(value):
            return F.pad(value, (self.prefix, 0), value=math.nan)

        rows += [spatial((patch_rows * self.distance).sum(-1) / patch_rows.sum(-1)),
                 spatial((patch_rows * self.window3).sum(-1)), spatial((patch_rows * self.window5).sum(-1)),
                 p[..., 0]]
        rows = torch.stack(rows, -1)
        sets = torch.stack([rows.nanmean(-2), rows[..., 0, :], rows[..., self.prefix:, :].mean(-2)], -2)
        sink = p.mean(-2).amax(-1)[..., None, None].expand(*sets.shape[:-1], 1)
        return torch.cat([sets, sink], -1)

    def forward(self, x):
        m = self.model
        stats = []
        x = m.norm_pre(m._pos_embed(m.patch_embed(x)))
        for block in m.blocks:
            a, y = block.attn, block.norm1(x)
            b, n, c = y.shape
            q, k, v = a.qkv(y).reshape(b, n, 3, a.num_heads, c // a.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
            p = ((q * a.scale) @ k.transpose(-2, -1)).float().softmax(-1)
            stats.append(self.statistics(p))
            x = x + a.proj((p.to(v.dtype) @ v).transpose(1, 2).reshape(b, n, c))
            x = x + block.mlp(block.norm2(x))
        return m.forward_head(m.norm(x)), torch.stack(stats)


def profile(job, mode):
    model = job.model().eval().to(job.dtype)
    run = compiled(Profiled(model, job.kind == "profile_all").to(job.device), mode)
    x = job.images(model, job.dtype)

    def step():
        with torch.inference_mode():
            run(x)

    return step, 1


class WideLstm(nn.Module):
    """FAR's multi-head BiLSTM as its authors run it, up to the head outputs."""

    def __init__(self, width, heads):
        super().__init__()
        self.pre = nn.Linear(width, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.heads = nn.Linear(2 * width, width)

    def forward(self, x):
        return self.heads(self.lstm(self.pre(x))[0])


class HeadLstm(nn.Module):
    """The same function with one small LSTM a head."""

    def __init__(self, width, heads):
        super().__init__()
        w = width // heads
        self.pre = nn.Linear(width, width)
        self.lstm = nn.ModuleList(nn.LSTM(w, w, batch_first=True, bidirectional=True) for _ in range(heads))
        self.heads = nn.ModuleList(nn.Linear(2 * w, w) for _ in range(heads))

    def forward(self, x):
        parts = self.pre(x).chunk(len(self.lstm), -1)
        return torch.cat([h(l(c.contiguous())[0]) for c, l, h in zip(parts, self.lstm, self.heads)], -1)


def lstm_of(mode):
    form = {"wide": WideLstm, "heads": HeadLstm}[mode.split("_")[0]]
    # fp16 is cuDNN's fast path for an LSTM, bf16 falls off it.
    return form, torch.bfloat16 if "bf16" in mode else torch.float16


def distill(job, mode):
    """Stage 1: every student layer is given what the teacher's attention got and learns its head outputs."""
    teacher = job.model().eval().requires_grad_(False)
    form, dtype = lstm_of(mode)
    attention = [b.attn for b in teacher.blocks]
    students = nn.ModuleList(form(teacher.embed_dim, a.num_heads) for a in attention).to(job.device)
    graph = mode.endswith("graph")
    optimizer = torch.optim.AdamW(students.parameters(), lr=1e-3, fused=True, capturable=graph)
    x, seen, heads = job.images(teacher), [], []
    for a in attention:
        a.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        a.proj.register_forward_pre_hook(lambda module, inputs: heads.append(inputs[0]))

    def step():
        seen.clear(), heads.clear()
        with job.autocast(dtype):
            with torch.no_grad():
                teacher(x)
            loss = sum(F.mse_loss(s(a), h) for s, a, h in zip(students, seen, heads))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return (graphed(step) if graph else step), None


def lstm(job, mode):
    """The recurrent part of one layer, forward and backward."""
    model = job.model()
    d, heads, n = model.embed_dim, model.blocks[0].attn.num_heads, model.patch_embed.num_patches + 1
    _, dtype = lstm_of(mode)
    dtype = torch.float32 if job.cpu else dtype
    wide = mode.startswith("wide")
    w = d if wide else d // heads
    parts = [nn.LSTM(w, w, batch_first=True, bidirectional=True).to(job.device, dtype)
             for _ in range(1 if wide else heads)]
    xs = [torch.randn(job.batch, n, w, device=job.device, dtype=dtype, requires_grad=True) for _ in parts]
    gs = [torch.randn(job.batch, n, 2 * w, device=job.device, dtype=dtype) for _ in parts]

    def forward():
        with torch.inference_mode():
            for l, x in zip(parts, xs):
                l(x)

    def step():  # new gradients, none added to old ones
        for l, x, g in zip(parts, xs, gs):
            torch.autograd.grad(l(x)[0], [x, *l.parameters()], g)

    graph = mode.endswith("graph")
    job.forward = graphed(forward) if graph else forward
    return (graphed(step) if graph else step), None


def attention(job, mode):
    model = job.model()
    heads, n = model.blocks[0].attn.num_heads, model.patch_embed.num_patches + 1
    q, k, v = (torch.randn(job.batch, heads, n, model.embed_dim // heads, device=job.device, dtype=job.dtype,
                           requires_grad=True) for _ in range(3))
    g = torch.randn_like(q)
    backend = torch.nn.attention.SDPBackend
    chosen = backend.MATH if job.cpu else backend.CUDNN_ATTENTION if "cudnn" in mode else backend.FLASH_ATTENTION

    def forward():
        with torch.inference_mode(), torch.nn.attention.sdpa_kernel(chosen):
            F.scaled_dot_product_attention(q, k, v)

    def step():
        with torch.nn.attention.sdpa_kernel(chosen):
            torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), [q, k, v], g)

    graph = mode.endswith("graph")
    job.forward = graphed(forward) if graph else forward
    return (graphed(step) if graph else step), None


def small_train(job, mode):
    """32 x 32 images resident as uint8; crop, flip, mixup or cutmix and normalisation belong to the step."""
    model = job.model().train()
    side, classes, b = model.patch_embed.img_size[0], model.num_classes, job.batch
    count, device = (64 if job.args.tiny else 50000), job.device
    pixels = torch.randint(0, 256, (count, 3, side + 8, side + 8), device=device, dtype=torch.uint8)  # padded by 4
    labels = torch.randint(0, classes, (count,), device=device)
    # Host randomness would wait for the device: a table drawn once, walked by a counter that lives there.
    draws = 4096
    mixed = torch.distributions.Beta(0.8, 0.8).sample((draws,)).to(device)
    cut = torch.rand(draws, device=device) < 0.5
    counter = torch.zeros((), dtype=torch.int64, device=device)
    across = torch.arange(side, device=device)

    def batch():
        i = counter % draws
        index = torch.randint(0, count, (b,), device=device)
        top, left = torch.randint(0, 9, (2, b, 1), device=device)
        flip = torch.rand(b, 1, device=device) < 0.5
        rows = top + across
        columns = left + torch.where(flip, side - 1 - across, across)
        x = pixels[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        x = (x.float() / 255 - 0.5) / 0.25
        lam = torch.where(cut[i], torch.rand((), device=device), mixed[i])
        half = torch.sqrt(1 - lam) * side / 2
        cy, cx = torch.rand(2, device=device) * side
        y0, y1, x0, x1 = ((v.clamp(0, side)).long() for v in (cy - half, cy + half, cx - half, cx + half))
        box = ((across >= y0) & (across < y1))[:, None] & ((across >= x0) & (across < x1))[None]
        other = x.flip(0)
        x = torch.where(cut[i], torch.where(box, other, x), lam * x + (1 - lam) * other)
        lam = torch.where(cut[i], 1 - (y1 - y0) * (x1 - x0) / (side * side), lam)
        one_hot = F.one_hot(labels[index], classes).float()
        counter.add_(1)
        return x, lam * one_hot + (1 - lam) * one_hot.flip(0)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    run, make = compiled(model, mode), compiled(batch, mode)

    def step():
        if not job.cpu:
            torch.compiler.cudagraph_mark_step_begin()
        x, targets = make()
        with job.autocast():
            loss = F.cross_entropy(run(x), targets, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, 3


LSTM_MODES = ["wide", "heads", "wide_graph", "heads_graph"]
KINDS = {
    "train": (train, COMPILED), "infer": (infer, COMPILED), "profile_stream": (profile, COMPILED[:3]),
    "profile_all": (profile, COMPILED[:3]), "distill": (distill, LSTM_MODES), "small_train": (small_train, COMPILED),
    "lstm": (lstm, ["wide", "wide_graph", "heads_graph", "wide_bf16_graph"]),
    "attention": (attention, ["flash_graph", "cudnn_graph", "flash", "cudnn"]),
    "cpu_infer": (infer, ["eager", "default"]), "cpu_train": (train, ["eager", "default"]),
}


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
