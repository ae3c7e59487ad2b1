"""What the peer times: for every kind of row the step in PyTorch and timm, made as fast as PyTorch's own switches do."""
import copy
import json
import math
import os
import re
import sys

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
    return lambda keep=step: graph.replay()  # the graph reads memory of the step's tensors


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


class Replaced(nn.Module):
    """Attention's place with something else up to the head outputs; the projection stays."""

    def __init__(self, core, proj):
        super().__init__()
        self.core, self.proj = core, proj

    def forward(self, x, **_):
        return self.proj(self.core(x))


def student(job, mode):
    """Inference with a BiLSTM in the place of every attention."""
    form, dtype = lstm_of(mode)
    model = job.model()
    for block in model.blocks:
        block.attn = Replaced(form(model.embed_dim, block.attn.num_heads), block.attn.proj)
    dtype = torch.float32 if job.cpu else dtype
    model = model.eval().to(job.device, dtype)
    x = job.images(model, dtype)

    def step():
        with torch.inference_mode():
            model(x)

    return (graphed(step) if mode.endswith("graph") else step), None


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
    "profile_all": (profile, COMPILED[:3]), "distill": (distill, LSTM_MODES), "student": (student, LSTM_MODES), "small_train": (small_train, COMPILED),
    "lstm": (lstm, ["wide", "wide_graph", "heads_graph", "wide_bf16_graph"]),
    "attention": (attention, ["flash_graph", "cudnn_graph", "flash", "cudnn"]),
    "cpu_infer": (infer, ["eager", "default"]), "cpu_train": (train, ["eager", "default"]),
}
