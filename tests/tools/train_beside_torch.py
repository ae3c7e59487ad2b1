#!/usr/bin/env python3
"""Trains one network here and in PyTorch from the same weights on the same batches, and compares the losses step by step.

    train_beside_torch.py --train build-cuda/bin/train --data cifar-100-binary [--work DIR]

Needs torch, timm, Pillow and a GPU. `--data` is the folder with CIFAR-100's train.bin. The images are enlarged to 224
once, with Pillow, and written as PNG, so that both sides read the same bytes; timm makes the weights; the order of the
batches is the one that `train` draws (permutation() below, from core/rng.h). No augmentation, dropout or smoothing.
PyTorch runs under autocast with fused AdamW, five times: eager and compiled, from those weights and from weights
perturbed by a relative 1e-6.

What is expected. A loss is mu(t) + e(t): rounding that the training amplifies, much the same mu(t) for all. A peer
rounds about 8 values a block to bf16, each of the size of a branch b; the residual stream is f32 there and bf16 here, two
more roundings a block of the size of the stream x, which grows as sqrt(2 l) b up to block l of L. On the last stream
that is u sqrt(8 L) / sqrt(2 L) = 2 u of theirs against u sqrt(2 sum_l l / L) ~ u sqrt(L) = 3.5 u more: sqrt(4 + 12) = 4 u here.
So this side may deviate by FACTOR = 2 times what a peer does: with d_j(t) = |peer j - mean of the other four| and
d(t) = |ours - mean of the five|,

    mean_t d(t) <= 2 max_j mean_t d_j(t)    and    max_t d(t) <= 2 max_j max_t d_j(t).

Exits with 1 when this does not hold. `--extra NAME:key=value,...` trains here once more with other settings, to see
how large a fault must be to be seen; those runs are told and not judged.
"""
import argparse
import json
import multiprocessing
import pathlib
import subprocess
import sys
import time

import numpy as np

MODEL, SIDE, CLASSES = "deit_small_patch16_224", 224, 100
RECIPE = {"lr": 5e-4, "weight_decay": 0.05, "warmup_steps": 20, "warmup_lr": 1e-6, "min_lr": 1e-6}
FACTOR = 2
PEERS = [("eager", 0), ("eager", 1), ("eager", 2), ("compiled", 0), ("compiled", 3)]  # how, seed of the perturbation
MASK = 2**64 - 1


def hash_name(seed, name):
    h = 0xCBF29CE484222325 ^ (seed * 0x9E3779B97F4A7C15 & MASK)
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


def philox(key, counter, step):
    """Philox4x32-10: four numbers."""
    c = [counter & 0xFFFFFFFF, counter >> 32, step & 0xFFFFFFFF, step >> 32]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def permutation(count, seed, epoch):
    """The order in which `train` reads `count` images in an epoch."""
    key = hash_name(seed, "data.order")
    numbers = [n for counter in range((count + 1) // 2) for n in philox(key, counter, epoch)]
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        at = 2 * (count - 1 - i)
        draw = numbers[at] << 32 | numbers[at + 1]
        assert draw >= 2**64 % (i + 1), "would be drawn again, which happens once in 2^50: take another seed"
        j = draw % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def learning_rate(step, steps):
    r = RECIPE
    if step < r["warmup_steps"]:
        return r["warmup_lr"] + (r["lr"] - r["warmup_lr"]) * step / r["warmup_steps"]
    done = (step - r["warmup_steps"]) / max(steps - r["warmup_steps"], 1)
    return r["min_lr"] + (r["lr"] - r["min_lr"]) * 0.5 * (1 + np.cos(np.pi * done))


def enlarge(job):
    from PIL import Image
    path, planes = job
    image = Image.fromarray(planes.reshape(3, 32, 32).transpose(1, 2, 0)).resize((SIDE, SIDE), Image.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)
    return np.asarray(image).transpose(2, 0, 1)


def write_images(data, count, folder):
    """The first count / 100 images of each class, one more of each for the evaluation at the end; in path order."""
    records = np.fromfile(data / "train.bin", np.uint8).reshape(-1, 3074)
    jobs, labels = [], []
    for label in range(CLASSES):
        rows = records[records[:, 1] == label]
        if len(rows) <= count // CLASSES:
            sys.exit(f"{data}/train.bin: {len(rows)} images of class {label}, {count // CLASSES + 1} are needed")
        for i in range(count // CLASSES):
            jobs.append((folder / f"train/{label:03d}/{i:04d}.png", rows[i, 2:]))
            labels.append(label)
    others = [(folder / f"val/{label:03d}/0000.png", records[records[:, 1] == label][-1, 2:]) for label in range(CLASSES)]
    with multiprocessing.Pool() as pool:
        images = np.stack(pool.map(enlarge, jobs, chunksize=64))
        pool.map(enlarge, others, chunksize=16)
    return images, np.array(labels)


def ours(args, name, settings, epochs):
    folder = args.work / f"run-{name}"
    warmup = RECIPE["warmup_steps"] * epochs / args.steps
    command = [args.train, f"model.checkpoint={args.work}/weights.safetensors", f"model.name={MODEL}", "data.name=folder",
               f"data.root={args.work}/images", "data.resize=none", "data.crop_pct=1", "precision=bf16",
               f"train.epochs={epochs}", f"train.batch={args.batch}", f"train.eval_every={epochs}", f"train.save_every={epochs}",
               "train.log_every=1", "train.label_smoothing=0", f"train.seed={args.seed}", f"train.optim.lr={RECIPE['lr']}",
               f"train.optim.weight_decay={RECIPE['weight_decay']}", f"train.schedule.warmup={warmup}",
               f"train.schedule.warmup_lr={RECIPE['warmup_lr']}", f"train.schedule.min_lr={RECIPE['min_lr']}",
               f"out.dir={folder}", "out.overwrite=true", "--device", "cuda"]
    keys = [s.split("=")[0] for s in settings]
    command = [c for c in command if c.split("=")[0] not in keys] + settings
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    losses = [line["loss"] for line in lines if "loss" in line]
    print(f"{name}: {len(losses)} steps, {time.time() - start:.1f} s", flush=True)
    return losses


def peers(weights, images, labels, batches):
    """Losses of each of PEERS."""
    import timm
    import torch
    import torch.nn.functional as F
    device = torch.device("cuda")
    images, labels = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    batches = torch.tensor(batches, device=device)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)
    model = timm.create_model(MODEL, num_classes=CLASSES).to(device).train()
    forward = {"eager": model, "compiled": torch.compile(model)}
    tokens = model.no_weight_decay()
    result = []
    for how, perturbation in PEERS:
        start = time.time()
        generator = torch.Generator().manual_seed(perturbation)
        model.load_state_dict({k: v * (1 + 1e-6 * torch.randn(v.shape, generator=generator)) if perturbation else v
                               for k, v in weights.items()})
        named = list(model.named_parameters())
        decayed = [p for n, p in named if p.ndim > 1 and n not in tokens]
        others = [p for n, p in named if p.ndim <= 1 or n in tokens]
        optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": RECIPE["weight_decay"]},
                                       {"params": others, "weight_decay": 0.0}], lr=RECIPE["lr"], eps=1e-8, fused=True)
        losses = []
        for step, rows in enumerate(batches):
            x = (images[rows].float() / 255 - mean) / std
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, len(batches))
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(forward[how](x).float(), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        result.append(torch.stack(losses).tolist())
        print(f"PyTorch {torch.__version__} {how}, perturbed by {1e-6 if perturbation else 0}: {time.time() - start:.1f} s", flush=True)
    return np.array(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="the built app")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder with CIFAR-100's train.bin")
    parser.add_argument("--work", default="train_beside_torch", type=pathlib.Path, help="folder for weights, images and runs")
    parser.add_argument("--steps", default=200, type=int)
    parser.add_argument("--batch", default=64, type=int)
    parser.add_argument("--images", default=6400, type=int, help="a multiple of 100; steps * batch is a multiple of it")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--extra", action="append", default=[], help="NAME:key=value,... one more run here")
    args = parser.parse_args()
    epochs, rest = divmod(args.steps * args.batch, args.images)
    if rest or args.images % args.batch or args.images % CLASSES:
        sys.exit("--images must be a multiple of 100 and of --batch, and divide steps * batch")
    args.work.mkdir(parents=True, exist_ok=True)

    import timm
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(args.seed)
    weights = {k: v.clone() for k, v in timm.create_model(MODEL, num_classes=CLASSES).state_dict().items()}
    save_file(weights, args.work / "weights.safetensors")
    start = time.time()
    images, labels = write_images(args.data, args.images, args.work / "images")
    print(f"{torch.cuda.get_device_name()}; {args.images} images written in {time.time() - start:.1f} s", flush=True)
    order = sum((permutation(args.images, args.seed, epoch) for epoch in range(epochs)), [])
    batches = np.array(order).reshape(args.steps, args.batch)

    mine = np.array(ours(args, "ours", [], epochs))
    extras = {}
    for extra in args.extra:
        name, _, settings = extra.partition(":")
        extras[name] = np.array(ours(args, name, settings.split(","), epochs))
    theirs = peers(weights, images, labels, batches)
    (args.work / "losses.json").write_text(json.dumps(
        {"ours": mine.tolist(), "theirs": theirs.tolist(), "peers": PEERS, "extras": {k: v.tolist() for k, v in extras.items()}}))

    centre, low, high = theirs.mean(0), theirs.min(0), theirs.max(0)
    spread = [np.abs(theirs[j] - np.delete(theirs, j, 0).mean(0)) for j in range(len(PEERS))]
    print(f"\n{MODEL}, bf16, {args.steps} steps of {args.batch} images\n")
    print("| run | loss, first step | last 20 steps | mean d | largest d | at step | mean d, steps 1-20 | inside the peers' range |")
    print("|---|---|---|---|---|---|---|---|")

    def row(name, losses, d, inside):
        print(f"| {name} | {losses[0]:.6f} | {losses[-20:].mean():.4f} | {d.mean():.6f} | {d.max():.6f} | {d.argmax() + 1} | "
              f"{d[:20].mean():.6f} | {inside} |")

    for (how, perturbation), losses, d in zip(PEERS, theirs, spread):
        row(how + (", perturbed" if perturbation else ""), losses, d, "")
    for name, losses in [("**here**", mine), *extras.items()]:
        row(name, losses, np.abs(losses - centre), f"{100 * np.mean((losses >= low) & (losses <= high)):.0f} %")
    d = np.abs(mine - centre)
    bounds = FACTOR * max(s.mean() for s in spread), FACTOR * max(s.max() for s in spread)
    ok = bool(d.mean() <= bounds[0] and d.max() <= bounds[1])
    print(f"\nbounds: mean {bounds[0]:.6f}, largest {bounds[1]:.6f}: {'held' if ok else 'NOT HELD'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
