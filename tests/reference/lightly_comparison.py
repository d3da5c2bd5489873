"""Trains the same network on the same views by the same optimiser, once here and once in lightly, and compares.

    python tests/reference/lightly_comparison.py [--methods simclr,byol] [--seeds 3] [--epochs 2] [--work DIR]

Needs torch, torchvision, lightly 1.6, safetensors and numpy. For every method and seed:

* `cargo xtask pretrain --method METHOD` trains our encoder with its recipe for Fashion-MNIST;
* `cargo xtask views --tensors` writes the very views that it trained on, and lightly's heads and losses train a
  torchvision ResNet of the same width on them, in the same order, with the same batch, epochs, optimiser and schedule;
* both encoders are loaded into torchvision and judged by the same code below: weighted kNN and a linear probe.

Only the initial weights differ, whose distribution is the same, and the method. What lightly has of its own, and where
that differs from the recipe, stands at each learner below. A line of JSON for each pair goes to results.jsonl in the
folder of --work, and pairs that stand there are not trained again. Views, some 0.3 GB an epoch, are deleted after use.
At the end a table of all pairs that stand there.
"""

import argparse
import copy
import gzip
import json
import math
import os
import shutil
import statistics
import subprocess
import time
import tomllib
from pathlib import Path

import numpy as np
import torch
from lightly import loss as losses
from lightly.models.modules import heads
from lightly.models.utils import update_momentum
from safetensors.torch import load_file
from steps import resnet18
from torch import nn
from torchvision.models.resnet import BasicBlock

ROOT = Path(__file__).resolve().parent.parent.parent
# Neighbours with the same augmentation share their views.
METHODS = ["simclr", "moco-v2", "simsiam", "byol", "barlow-twins", "vicreg", "swav"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--epochs", type=int, help="by default those of the recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the recipes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides")
    parser.add_argument("--xtask", type=Path, help="a built runner; by default `cargo xtask` builds it")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "lightly-comparison")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    a.work.mkdir(parents=True, exist_ok=True)
    runner = Runner(a.xtask, a.work.resolve(), a.threads)
    log = a.work / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed in range(a.seeds):
        for method in a.methods.split(","):
            options = ["--method", method, "--seed", str(seed), *(x for value in a.set for x in ("--set", value))]
            options += ["--epochs", str(a.epochs)] if a.epochs else []
            recipe_text = runner("pretrain", *options, "--print-recipe")
            if any((d["method"], d["seed"], d["recipe"]) == (method, seed, recipe_text) for d in done):
                continue
            result = compare(method, seed, options, tomllib.loads(recipe_text), runner)
            done.append({"method": method, "seed": seed, "recipe": recipe_text} | result)
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(method, seed, json.dumps(result), flush=True)
    runner.delete_views()
    print_table(done)


class Runner:
    """Calls the runner, and keeps the newest views as long as the next pair can use them."""

    def __init__(self, binary: Path | None, work: Path, threads: int):
        self.command = [str(binary.resolve())] if binary else ["cargo", "xtask"]
        self.work, self.threads, self.key = work, threads, None
        # What .cargo/config.toml sets for `cargo xtask`.
        self.environment = os.environ | {"MIMALLOC_PURGE_DELAY": "-1", "CANDLE_NUM_THREADS": "1"}

    def __call__(self, *arguments: str) -> str:
        """What the runner prints."""
        command = [*self.command, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def views(self, options: list, recipe: dict) -> Path:
        folder = self.work / "views"
        train = recipe["train"]
        key = [recipe["seed"], recipe["data"], recipe["augment"], train["epochs"], train["batch_size"]]
        if self.key != key:
            self.delete_views()
            self("views", *options, "--threads", str(self.threads), "--tensors", str(folder))
            self.key = key
        return folder

    def delete_views(self) -> None:
        self.key = None
        shutil.rmtree(self.work / "views", ignore_errors=True)


def compare(method: str, seed: int, options: list, recipe: dict, runner: Runner) -> dict:
    run = runner.work / f"ours-{method}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    started = time.monotonic()
    runner("pretrain", *options, "--threads", str(runner.threads), "--out", str(run), "--no-eval")
    ours_seconds = time.monotonic() - started
    ours = resnet18(recipe["backbone"]["width"])
    ours.load_state_dict(load_file(run / "encoder.safetensors"), strict=True)
    shutil.rmtree(run)
    torch.manual_seed(seed)
    theirs = initialized(resnet18(recipe["backbone"]["width"]), recipe["backbone"]["zero_init_residual"])
    learner = LEARNERS[method](theirs, recipe["method"])
    seconds = train(learner, recipe, runner.views(options, recipe))
    data = [split(recipe, name) for name in ("train", "t10k")]
    return {
        "ours": judge(ours, data),
        "lightly": judge(theirs, data),
        "ours_seconds": ours_seconds,
        "lightly_seconds": seconds,
        "epochs": recipe["train"]["epochs"],
        "threads": runner.threads,
    }


def initialized(network: nn.Module, zero_init_residual: bool) -> nn.Module:
    """As torchvision does it. Layers that `resnet18` has put in its place have PyTorch's default weights, whose
    variance is a sixth or less of that."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual and isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    return network


def train(learner: nn.Module, recipe: dict, views: Path) -> float:
    """Trains on the views of all epochs; the time of it, without reading files."""
    optimizer = make_optimizer(learner, recipe["optimizer"])
    batch, epochs = recipe["train"]["batch_size"], recipe["train"]["epochs"]
    learner.train()
    seconds, step, total = 0.0, 0, None
    for epoch in range(epochs):
        tensors = load_file(views / f"epoch-{epoch}.safetensors")
        stacks = [tensors[f"view_{i}"] for i in range(sum(name.startswith("view_") for name in tensors))]
        steps = len(stacks[0]) // batch
        total = total or steps * epochs
        started = time.monotonic()
        for place in range(steps):
            for group in optimizer.param_groups:
                peak = recipe["optimizer"]["lr"]
                group["lr"] = peak if group["constant"] else peak * rate(recipe["schedule"], step, steps, total)
            value = learner([stack[place * batch : (place + 1) * batch] for stack in stacks], step, total)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if step + 1 == total:
                check_gradients(learner)
            optimizer.step()
            if hasattr(learner, "after_step"):
                learner.after_step(step, total)
            step += 1
        seconds += time.monotonic() - started
    return seconds


def check_gradients(learner: nn.Module) -> None:
    """Nothing that should learn may be left out."""
    for name, p in learner.named_parameters():
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or (p.ndim > 1 and not p.grad.any())):
            raise RuntimeError(f"{name} has no gradient")


def rate(schedule: dict, step: int, steps_per_epoch: int, total: int) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine."""
    if schedule["name"] == "constant":
        return 1.0
    warmup = round(schedule["warmup_epochs"] * steps_per_epoch)
    if step < warmup:
        return step / warmup
    end = schedule["end_factor"]
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def make_optimizer(learner: nn.Module, c: dict) -> torch.optim.Optimizer:
    constant = getattr(learner, "constant_lr", lambda name: False)
    groups = []
    for name, p in learner.named_parameters():
        if p.requires_grad:
            decay = 0.0 if c["exclude_bias_and_norm"] and p.ndim <= 1 else c["weight_decay"]
            groups.append({"params": [p], "weight_decay": decay, "constant": constant(name)})
    if c["name"] == "sgd":
        return torch.optim.SGD(groups, lr=c["lr"], momentum=c["momentum"], nesterov=c["nesterov"])
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[c["name"]]
    return kind(groups, lr=c["lr"], betas=(c["beta1"], c["beta2"]), eps=c["eps"])


class SimClr(nn.Module):
    def __init__(self, backbone: nn.Module, c: dict):
        super().__init__()
        self.backbone = backbone
        d = backbone.bn1.num_features * 8
        self.projector = heads.SimCLRProjectionHead(d, c["projector_hidden"] or d, c["projector_dim"])
        self.criterion = losses.NTXentLoss(temperature=c["temperature"])

    def forward(self, views: list, step: int, total: int) -> torch.Tensor:
        # One pass for both views, as here.
        return self.criterion(*self.projector(self.backbone(torch.cat(views))).chunk(2))


class Byol(nn.Module):
    def __init__(self, backbone: nn.Module, c: dict):
        super().__init__()
        self.backbone, self.c = backbone, c
        d = backbone.bn1.num_features * 8
        self.projector = heads.BYOLProjectionHead(d, c["projector_hidden"], c["projector_dim"])
        self.predictor = heads.BYOLPredictionHead(c["projector_dim"], c["predictor_hidden"], c["projector_dim"])
        self.teacher = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        self.criterion = losses.NegativeCosineSimilarity()

    def forward(self, views: list, step: int, total: int) -> torch.Tensor:
        q = [self.predictor(self.projector(self.backbone(view))) for view in views]
        with torch.no_grad():
            t = [self.teacher(view) for view in views]
        # The paper's scale, 2 - 2 cos in each direction.
        return 4 + 2 * (self.criterion(q[0], t[1]) + self.criterion(q[1], t[0]))

    def after_step(self, step: int, total: int) -> None:
        start, end = self.c["momentum"], self.c["final_momentum"]
        m = end - (end - start) * 0.5 * (1 + math.cos(math.pi * step / total))
        update_momentum(nn.Sequential(self.backbone, self.projector), self.teacher, m)


class MoCo(nn.Module):
    """Asymmetric: the first view asks. lightly's queue takes keys after the loss has seen the older ones, as here."""

    def __init__(self, backbone: nn.Module, c: dict):
        super().__init__()
        assert not c["symmetric"] and c["batch_norm_groups"] == 1
        self.backbone, self.momentum = backbone, c["momentum"]
        d = backbone.bn1.num_features * 8
        self.projector = heads.MoCoProjectionHead(
            d, c["projector_hidden"] or d, c["projector_dim"], num_layers=c["projector_layers"]
        )
        self.key = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        self.criterion = losses.NTXentLoss(c["temperature"], memory_bank_size=(c["queue_size"], c["projector_dim"]))

    def forward(self, views: list, step: int, total: int) -> torch.Tensor:
        with torch.no_grad():
            k = self.key(views[1])
        return self.criterion(self.projector(self.backbone(views[0])), k)

    def after_step(self, step: int, total: int) -> None:
        update_momentum(nn.Sequential(self.backbone, self.projector), self.key, self.momentum)


class SimSiam(nn.Module):
    """lightly's own projector has always three layers; this is its base class with the recipe's number."""

    def __init__(self, backbone: nn.Module, c: dict):
        super().__init__()
        self.backbone, self.constant = backbone, c["constant_predictor_lr"]
        d, hidden, dim = backbone.bn1.num_features * 8, c["projector_hidden"], c["projector_dim"]
        widths = [d] + [hidden] * (c["projector_layers"] - 1)
        blocks = [(a, b, nn.BatchNorm1d(b), nn.ReLU()) for a, b in zip(widths, widths[1:])]
        self.projector = heads.ProjectionHead([*blocks, (widths[-1], dim, nn.BatchNorm1d(dim, affine=False), None)])
        self.predictor = heads.SimSiamPredictionHead(dim, c["predictor_hidden"], dim)
        self.criterion = losses.NegativeCosineSimilarity()

    def constant_lr(self, name: str) -> bool:
        return self.constant and name.startswith("predictor.")

    def forward(self, views: list, step: int, total: int) -> torch.Tensor:
        z = [self.projector(self.backbone(view)) for view in views]
        p = [self.predictor(x) for x in z]
        return 0.5 * (self.criterion(p[0], z[1].detach()) + self.criterion(p[1], z[0].detach()))


class TwoViews(nn.Module):
    """Projections of both views, one after the other, and a loss of them."""

    def forward(self, views: list, step: int, total: int) -> torch.Tensor:
        return self.criterion(*(self.projector(self.backbone(view)) for view in views))


class BarlowTwins(TwoViews):
    """lightly's own projector has always three layers; this is its base class with the recipe's number. Without the
    bias of the last layer, which the loss takes away. The loss is the plain sum on both sides, so AdamW sees the same."""

    def __init__(self, backbone: nn.Module, c: dict):
        super().__init__()
        assert c["loss_scale"] == 1.0
        self.backbone = backbone
        widths = [backbone.bn1.num_features * 8] + [c["projector_hidden"]] * (c["projector_layers"] - 1)
        blocks = [(a, b, nn.BatchNorm1d(b), nn.ReLU()) for a, b in zip(widths, widths[1:])]
        self.projector = heads.ProjectionHead([*blocks, (widths[-1], c["projector_dim"], None, None, False)])
        self.criterion = losses.BarlowTwinsLoss(lambda_param=c["lambda"])


class VicReg(TwoViews):
    """lightly halves the variance part, as the recipe does with `halve_variance`. Its head has a bias in the last layer
    and none before the norms, ours the other way round; the loss or the norm takes either away."""

    def __init__(self, backbone: nn.Module, c: dict):
        super().__init__()
        assert c["halve_variance"]
        self.backbone = backbone
        self.projector = heads.VICRegProjectionHead(
            backbone.bn1.num_features * 8, c["projector_hidden"], c["projector_dim"], num_layers=c["projector_layers"]
        )
        self.criterion = losses.VICRegLoss(
            lambda_param=c["invariance_weight"], mu_param=c["variance_weight"], nu_param=c["covariance_weight"]
        )


class SwaV(nn.Module):
    """One pass of the backbone for each size of views and one of the head, as in the official code and here; lightly
    leaves that to its user. lightly's prototypes have a bias, which the official code and ours have not; it stays."""

    def __init__(self, backbone: nn.Module, c: dict):
        super().__init__()
        assert c["queue_length"] == 0 and c["projector_layers"] == 2 and c["projector_norm"]
        self.backbone, self.assigning = backbone, c["assigning_views"]
        dim = c["projector_dim"]
        self.projector = heads.SwaVProjectionHead(backbone.bn1.num_features * 8, c["projector_hidden"], dim)
        self.prototypes = heads.SwaVPrototypes(dim, c["prototypes"], c["freeze_prototypes_steps"])
        self.criterion = losses.SwaVLoss(c["temperature"], c["sinkhorn_iterations"], c["sinkhorn_epsilon"])

    def forward(self, views: list, step: int, total: int) -> torch.Tensor:
        with torch.no_grad():
            self.prototypes.normalize()
        sizes = [view.shape[-1] for view in views]
        # Views of one size stand side by side in the recipe, so that the order stays.
        groups = [torch.cat([v for v in views if v.shape[-1] == size]) for size in dict.fromkeys(sizes)]
        z = nn.functional.normalize(self.projector(torch.cat([self.backbone(group) for group in groups])))
        scores = self.prototypes(z, step).chunk(len(views))
        return self.criterion(list(scores[: self.assigning]), list(scores[self.assigning :]))


LEARNERS = {
    "simclr": SimClr,
    "moco-v2": MoCo,
    "byol": Byol,
    "simsiam": SimSiam,
    "barlow-twins": BarlowTwins,
    "vicreg": VicReg,
    "swav": SwaV,
}


def split(recipe: dict, name: str) -> tuple:
    """Images and labels of the data that ships with the project."""
    read = lambda kind: gzip.open(next((ROOT / "data/fashion-mnist").glob(f"{name}-{kind}*"))).read()  # noqa: E731
    labels = np.frombuffer(read("labels"), np.uint8, offset=8).astype(np.int64)
    pixels = np.frombuffer(read("images"), np.uint8, offset=16).reshape(len(labels), 1, 28, 28)
    x = torch.from_numpy(pixels.astype(np.float32) / 255).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(recipe["augment"][key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std, torch.from_numpy(labels)


@torch.no_grad()
def features(backbone: nn.Module, x: torch.Tensor) -> torch.Tensor:
    backbone.eval()
    return torch.cat([backbone(part) for part in x.split(256)])


def judge(backbone: nn.Module, data: list) -> dict:
    (x, y), (x_test, y_test) = data
    z, z_test = features(backbone, x), features(backbone, x_test)
    return {"knn": knn(z, y, z_test, y_test), "linear": linear(z, y, z_test, y_test)}


def knn(z, y, z_test, y_test, k: int = 20, t: float = 0.07) -> float:
    z, z_test = nn.functional.normalize(z), nn.functional.normalize(z_test)
    similarity, index = (z_test @ z.T).topk(k)
    votes = torch.zeros(len(z_test), int(y.max()) + 1).scatter_add_(1, y[index], (similarity / t).exp())
    return (votes.argmax(1) == y_test).float().mean().item()


def linear(z, y, z_test, y_test, c: float = 0.1) -> float:
    """Multinomial logistic regression on standardised features, with the penalty |w|^2 / (2 c n)."""
    mean, std = z.mean(0), z.std(0) + 1e-6
    z, z_test = ((z - mean) / std).double(), ((z_test - mean) / std).double()
    w = torch.zeros(z.shape[1], int(y.max()) + 1, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(w.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(z @ w + b, y) + w.square().sum() / (2 * c * len(y))
        value.backward()
        return value

    optimizer.step(closure)
    return ((z_test @ w + b).argmax(1) == y_test).float().mean().item()


def print_table(done: list) -> None:
    """Means and standard deviations over the seeds, in per cent; the difference is of pairs, ours less lightly's."""
    measures = "kNN here | lightly | difference | linear here | lightly | difference"
    print(f"\n| Method | Seeds | {measures} | s/epoch here | lightly |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for method, epochs in dict.fromkeys((d["method"], d["epochs"]) for d in done):
        rows = [d for d in done if (d["method"], d["epochs"]) == (method, epochs)]
        cells = []
        for measure in ("knn", "linear"):
            ours, theirs = ([100 * row[side][measure] for row in rows] for side in ("ours", "lightly"))
            cells += [spread(ours), spread(theirs), spread([a - b for a, b in zip(ours, theirs)], "+")]
        for side in ("ours", "lightly"):
            cells.append(f"{statistics.median(row[f'{side}_seconds'] / epochs for row in rows):.0f}")
        print(f"| {method}, {epochs} epochs | {len(rows)} |", " | ".join(cells), "|")
    threads = sorted({d["threads"] for d in done})
    print(
        f"\nMean ± standard deviation over the seeds. Seconds are medians, with {threads} threads, and no benchmark:\n"
        "ours are of the whole process with its augmentation, lightly's of training steps on views that are there."
    )


def spread(values: list, sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


if __name__ == "__main__":
    main()
