"""Writes the reference values of a few training steps of SimCLR, computed by PyTorch in float64.

    python tests/python/make_simclr_step.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Writes simclr_step.safetensors (tensors) and
simclr_step.json (what they are, and the scalars) into tests/golden/steps; crates/ssl-train/tests/golden_step.rs
holds the Rust code to them. Running it again writes the same bytes.

Nothing here is taken from the Rust code but the names of the parameters:

* the encoder is torchvision's ResNet-18, 8 channels wide, with a 3x3 stem and without max-pool;
* the projector is Linear, BN, ReLU, Linear, BN, the linear layers without bias, the last BN without a shift;
* the weights follow the pattern rule of tests/golden/README.md, rounded to float32 once;
* both views pass in one batch in training mode; the loss is equation 1 of the paper
  (https://arxiv.org/abs/2002.05709), a loop over all pairs, and its mean over all 2N anchors;
* AdamW and SGD are PyTorch's; LARS is written out below after
  https://github.com/facebookresearch/barlowtwins/blob/main/main.py.

With --float32 it writes nothing and prints how far PyTorch's own float32 run strays from its float64 run, which is
what any float32 implementation may be expected to do. The tolerances of the Rust test are a few times that.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "steps"
WIDTH, HIDDEN, DIM = 8, 16, 12
BATCH, SIDE = 6, 16
# With these images no input of a ReLU comes so close to zero that float32 could put it on the other side, where one
# element would change gradients by a percent: see the last line of each optimiser with --float32.
SEED = 20168
TEMPERATURE = 0.2
STEPS = 3
OPTIMIZERS = {
    "adamw": dict(lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-3, weight_decay=0.01, exclude_bias_and_norm=True),
    "sgd": dict(lr=0.02, momentum=0.9, nesterov=False, weight_decay=1e-4, exclude_bias_and_norm=False),
    "lars": dict(lr=0.1, momentum=0.9, weight_decay=1e-6, trust_coefficient=1e-3, exclude_bias_and_norm=True),
}
CHOSEN = ["backbone.conv1.weight", "backbone.layer2.0.bn1.weight", "projector.0.weight"]
BUFFERS = ["running_mean", "running_var", "num_batches_tracked"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--float32", action="store_true")
    float32 = parser.parse_args().float32
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    views = make_views()
    exact = {name: run(name, views, torch.float64) for name in OPTIMIZERS}
    if float32:
        for name in OPTIMIZERS:
            print_deviations(name, run(name, views, torch.float32), exact[name])
    else:
        write(views, exact)


def make_views() -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy copies of the same noise, in float32."""
    generator = torch.Generator().manual_seed(SEED)
    images, noise_a, noise_b = torch.randn(3, BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return (images + 0.5 * noise_a).float(), (images + 0.5 * noise_b).float()


class SimClr(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18(WIDTH)
        self.projector = nn.Sequential(
            nn.Linear(8 * WIDTH, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, DIM, bias=False),
            nn.BatchNorm1d(DIM),
        )
        # The last norm has no shift: zero, and not a parameter.
        self.projector[4].bias = None

    def loss(self, view_a: torch.Tensor, view_b: torch.Tensor) -> torch.Tensor:
        return nt_xent(self.projector(self.backbone(torch.cat([view_a, view_b]))))


def resnet18(width: int) -> nn.Module:
    network = torchvision.models.resnet18(weights=None)
    block = type(network.layer1[0])
    network.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.maxpool = nn.Identity()
    network.inplanes = width
    network.layer1 = network._make_layer(block, width, 2)
    network.layer2 = network._make_layer(block, 2 * width, 2, stride=2)
    network.layer3 = network._make_layer(block, 4 * width, 2, stride=2)
    network.layer4 = network._make_layer(block, 8 * width, 2, stride=2)
    network.fc = nn.Identity()
    return network


def nt_xent(z: torch.Tensor) -> torch.Tensor:
    """Equation 1, for the pairs (i, i + N): -log(exp(s_ij / T) / sum over k != i of exp(s_ik / T))."""
    n = len(z) // 2

    def similarity(i: int, k: int) -> torch.Tensor:
        return torch.dot(z[i], z[k]) / (z[i].norm() * z[k].norm())

    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = sum(torch.exp(similarity(i, k) / TEMPERATURE) for k in range(2 * n) if k != i)
        total = total - torch.log(torch.exp(similarity(i, j) / TEMPERATURE) / denominator)
    return total / (2 * n)


def pattern(name: str, shape: torch.Size) -> np.ndarray:
    """The float32 values of the tensor `name`: see tests/golden/README.md."""
    numel = math.prod(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    z = np.uint64(h) + np.arange(numel, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = z ^ (z >> np.uint64(31))
    u = (x >> np.uint64(40)).astype(np.float64) / 2**24
    s = 2 * u - 1
    if name.endswith("running_mean") or name.endswith("bias"):
        value = 0.1 * s
    elif name.endswith("running_var"):
        value = 0.5 + u
    elif len(shape) > 1:
        value = s * math.sqrt(3 / (numel // shape[0]))
    elif name.startswith("backbone.layer") and name.endswith("bn2.weight"):
        value = 0.25 * (1 + 0.1 * s)
    else:
        value = 1 + 0.1 * s
    return value.astype(np.float32).reshape(shape)


def run(optimizer_name: str, views: tuple, dtype: torch.dtype) -> dict:
    """The steps of one optimiser from the pattern weights, and all that is compared afterwards."""
    model = SimClr()
    start = {name: torch.from_numpy(pattern(name, t.shape)) for name, t in model.state_dict().items()}
    model.load_state_dict(start, strict=True)
    model.to(dtype).train()
    relu_inputs = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, x: relu_inputs.append(x[0].detach().double().clone()))
    parameters = dict(model.named_parameters())
    step = make_optimizer(optimizer_name, parameters)
    view_a, view_b = (view.to(dtype) for view in views)
    losses, gradients = [], None
    for _ in range(STEPS):
        model.zero_grad()
        loss = model.loss(view_a, view_b)
        loss.backward()
        losses.append(loss.item())
        if gradients is None:
            gradients = {name: p.grad.double().clone() for name, p in parameters.items()}
        step()
    return {
        "loss": losses,
        "gradients": gradients,
        "movements": {n: p.detach().double() - start[n].double() for n, p in parameters.items()},
        "parameters": {name: p.detach().double() for name, p in parameters.items()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "relu_inputs": relu_inputs,
    }


def make_optimizer(name: str, parameters: dict):
    """A function that takes one step from the gradients that the parameters hold."""
    c = OPTIMIZERS[name]
    if name == "lars":
        return lars(c, list(parameters.values()))
    if name == "sgd":
        options = dict(lr=c["lr"], momentum=c["momentum"], weight_decay=c["weight_decay"])
        return torch.optim.SGD(parameters.values(), **options).step
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": c["weight_decay"]},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=c["lr"], betas=(c["beta1"], c["beta2"]), eps=c["eps"]).step


def lars(c: dict, parameters: list):
    velocities = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step() -> None:
        for w, v in zip(parameters, velocities, strict=True):
            update = w.grad
            if w.ndim > 1:
                update = update + c["weight_decay"] * w
                w_norm, update_norm = w.norm(), update.norm()
                if w_norm > 0 and update_norm > 0:
                    update = update * (c["trust_coefficient"] * w_norm / update_norm)
            v.mul_(c["momentum"]).add_(update)
            w.sub_(c["lr"] * v)

    return step


def write(views: tuple, exact: dict) -> None:
    first = exact["adamw"]
    tensors = {"in.view_a": views[0], "in.view_b": views[1]}
    tensors |= {f"grad.param.{name}": first["gradients"][name] for name in CHOSEN}
    for optimizer, result in exact.items():
        tensors |= {f"out.{optimizer}.{name}": result["parameters"][name] for name in CHOSEN}
        for buffer in BUFFERS:
            name = f"backbone.bn1.{buffer}"
            tensors[f"out.{optimizer}.{name}"] = result["buffers"][name]
    description = {
        "origin": f"torch {torch.__version__.split('+')[0]}, torchvision {torchvision.__version__.split('+')[0]}: "
        "tests/python/make_simclr_step.py",
        "notes": "Three training steps of SimCLR on one batch, from the same pattern weights for each optimiser, in "
        "float64. Tensors: in.view_*; grad.param.NAME at the first step; out.OPTIMIZER.NAME after the last step. "
        "Below: the losses before each step; the L2 norms of all gradients at the first step; the L2 norms of what "
        "each parameter has moved after the last step.",
        "params": {
            "backbone": {"name": "resnet18", "stem": "cifar", "width": WIDTH},
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "temperature": TEMPERATURE,
            "optimizers": OPTIMIZERS,
        },
        "grad_norms": norms(first["gradients"]),
        "steps": {
            optimizer: {"loss": result["loss"], "movement_norms": norms(result["movements"])}
            for optimizer, result in exact.items()
        },
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, FOLDER / "simclr_step.safetensors")
    (FOLDER / "simclr_step.json").write_text(json.dumps(description, indent=1) + "\n")


def norms(tensors: dict) -> dict:
    return {name: t.norm().item() for name, t in tensors.items()}


def print_deviations(optimizer: str, result: dict, exact: dict) -> None:
    """The largest relative deviation of each kind of value, by L2 norm for tensors."""
    print(f"{optimizer}: losses {exact['loss']}")
    print("  loss", *(f"{abs(a - e) / e:.1e}" for a, e in zip(result["loss"], exact["loss"], strict=True)))
    for kind in ("gradients", "movements"):
        relative = {n: ((result[kind][n] - e).norm() / e.norm()).item() for n, e in exact[kind].items()}
        sizes = sorted(e.square().mean().sqrt().item() for e in exact[kind].values())
        worst = sorted(relative, key=relative.get, reverse=True)[:3]
        print(f"  {kind}: rms {sizes[0]:.1e} to {sizes[-1]:.1e};", *(f"{n} {relative[n]:.1e}" for n in worst))
    for buffer in BUFFERS[:2]:
        a, e = (r["buffers"][f"backbone.bn1.{buffer}"].double() for r in (result, exact))
        print(f"  {buffer} {((a - e).norm() / e.norm()).item():.1e}")
    pairs = zip(result["relu_inputs"], exact["relu_inputs"], strict=True)
    margin = min((e.abs().min() / (a - e).square().mean().sqrt()).item() for a, e in pairs)
    print(f"  relu: the input nearest to zero is {margin:.1f} times the rms error of its layer away")


if __name__ == "__main__":
    main()
