"""Trains the same network on the same views by the same optimiser, once here and once in lightly, and compares.

    cargo build --release -p xtask
    python tests/reference/lightly_comparison.py [--methods simclr,byol] [--seeds 3] [--epochs 3] [--work DIR]

Needs torch, torchvision, lightly 1.6, safetensors and numpy. For every method and seed:

* `cargo xtask pretrain --method METHOD` trains our encoder with its recipe for Fashion-MNIST;
* `cargo xtask views --tensors` writes the very views that it trained on, and lightly's heads and losses train a
  torchvision ResNet of the same width on them, in the same order, with the same batch, epochs, optimiser and schedule;
* both encoders are loaded into torchvision and judged by the same code below: weighted kNN and a linear probe.

Only the initial weights differ, whose distribution is the same, and the method. A line of JSON for each pair goes to
results.jsonl in the folder of --work, and pairs that stand there are not trained again. At the end a table.
"""

import argparse
import copy
import gzip
import json
import math
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

ROOT = Path(__file__).resolve().parent.parent.parent
METHODS = ["simclr", "moco-v2", "byol", "simsiam", "barlow-twins", "vicreg", "swav"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="by default those of the recipe")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "lightly-comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = arguments.work / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            options = ["--method", method, "--seed", str(seed)]
            options += ["--epochs", str(arguments.epochs)] if arguments.epochs else []
            recipe_text = xtask("pretrain", *options, "--print-recipe")
            if any((d["method"], d["seed"], d["recipe"]) == (method, seed, recipe_text) for d in done):
                continue
            result = compare(method, seed, options, tomllib.loads(recipe_text), arguments.work)
            done.append({"method": method, "seed": seed, "recipe": recipe_text} | result)
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(method, seed, json.dumps(result), flush=True)
    print_table(done)


def xtask(*arguments: str) -> str:
    """What the runner prints."""
    command = ["cargo", "xtask", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(method: str, seed: int, options: list, recipe: dict, work: Path) -> dict:
    run, views = work / f"ours-{method}-{seed}", work / "views"
    subprocess.run(["rm", "-rf", str(run), str(views)], check=True)
    xtask("pretrain", *options, "--out", str(run), "--no-eval")
    ours = resnet18(recipe["backbone"]["width"])
    ours.load_state_dict(load_file(run / "encoder.safetensors"), strict=True)
    xtask("views", *options, "--tensors", str(views))
    torch.manual_seed(seed)
    theirs = resnet18(recipe["backbone"]["width"])
    if recipe["backbone"]["zero_init_residual"]:
        for block in [module for layer in (1, 2, 3, 4) for module in getattr(theirs, f"layer{layer}")]:
            nn.init.zeros_(block.bn2.weight)
    learner = LEARNERS[method](theirs, recipe["method"])
    seconds = train(learner, recipe, views)
    data = [split(recipe, name) for name in ("train", "t10k")]
    return {"ours": judge(ours, data), "lightly": judge(theirs, data), "lightly_seconds": seconds}


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
            optimizer.step()
            if hasattr(learner, "after_step"):
                learner.after_step(step, total)
            step += 1
        seconds += time.monotonic() - started
    return seconds


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


LEARNERS = {"simclr": SimClr, "byol": Byol}


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
    print("\n| method | seeds | kNN here | kNN lightly | linear here | linear lightly |\n|---|---|---|---|---|---|")
    for method in dict.fromkeys(d["method"] for d in done):
        rows = [d for d in done if d["method"] == method]
        cells = []
        for measure in ("knn", "linear"):
            for side in ("ours", "lightly"):
                values = [100 * row[side][measure] for row in rows]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
        print(f"| {method} | {len(rows)} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
