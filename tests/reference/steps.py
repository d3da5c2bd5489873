"""What the reference programs of this folder share: weights by a rule, networks, optimisers, and the file of a golden step.

A program defines a torch.nn.Module with the tensor names of the Rust method, whose `loss(views, step)` is written from
the paper and whose `after_step(step)`, if there is one, updates what the optimiser does not, and hands it to `main`.
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
# Relative tolerances: a few times what PyTorch in float32 strays.
SGD = dict(name="sgd", lr=0.02, momentum=0.9, nesterov=False, weight_decay=1e-4, exclude_bias_and_norm=False)
ADAMW = dict(
    name="adamw",
    lr=2e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-3,
    weight_decay=0.01,
    exclude_bias_and_norm=True,
    movement_tolerance=4e-4,
)
# The trust coefficient moves weights by so little, 5e-4 of their size, that float32 rounding shows.
LARS = dict(
    name="lars",
    lr=0.1,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-6,
    trust_coefficient=1e-3,
    separate_norms=False,
    eps=1e-8,
    lr_in_momentum=False,
    clip=False,
    exclude_bias_and_norm=True,
    bias_and_norm_lr_factor=1.0,
    movement_tolerance=1e-3,
)
# The network of all references: `resnet18(8)`, and the same as a recipe's table.
WIDTH = 8
BACKBONE = {"name": "resnet18", "stem": "cifar", "width": WIDTH}


def main(
    name: str,
    make_model,
    views: list,
    *,
    method: dict,
    runs: dict,
    chosen: list,
    notes: str,
    steps: int = 3,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    backbone: dict = BACKBONE,
    start: dict | None = None,
    inputs: dict | None = None,
    tolerances: dict | None = None,
    program: str | None = None,
) -> None:
    """Runs the model in float64 and writes NAME.safetensors and NAME.json, or with --float32 prints deviations.

    `runs` are the optimisers by name, each a table of a recipe; it may have a list `lr_at`, the rate of each step, and
    `movement_tolerance`. All begin with the same weights: those of `start` by name, the others by `pattern`. `chosen` are
    the tensors that are stored whole; of all others the norms are. `inputs` are tensors besides the views that the loss reads. `tolerances` of `loss` and `gradient` are relative.
    `program` is the file that calls, if it is not NAME.py.
    """
    parser = argparse.ArgumentParser(description=notes)
    parser.add_argument("--float32", action="store_true", help="print how far PyTorch's own float32 strays; write nothing")
    float32 = parser.parse_args().float32
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = start or {}
    if float32:
        print(f"{name}:")
    exact = {run: train(make_model, views, o, steps, torch.float64, start) for run, o in runs.items()}
    if float32:
        for run, options in runs.items():
            print_deviations(run, train(make_model, views, options, steps, torch.float32, start), exact[run])
        return
    first = next(iter(exact.values()))
    tensors = {f"in.view_{i}": view for i, view in enumerate(views)}
    tensors |= {f"in.{name}": tensor for name, tensor in (inputs or {}).items()}
    tensors |= {f"start.{tensor}": value for tensor, value in start.items()}
    for step, gradients in enumerate(first["gradients"][:1]):
        tensors |= {f"grad.{step}.{tensor}": gradients[tensor] for tensor in chosen if tensor in gradients}
    for run, result in exact.items():
        tensors |= {f"out.{run}.{tensor}": result["state"][tensor] for tensor in chosen}
    versions = [f"{m.__name__} {m.__version__.split('+')[0]}" for m in (torch, torchvision)]
    description = {
        "origin": f"{', '.join(versions)}: tests/reference/{program or name}.py",
        "notes": notes,
        "method": method,
        "backbone": backbone,
        "steps": steps,
        "total_steps": total_steps or steps,
        "steps_per_epoch": steps_per_epoch or steps,
        "tolerances": {"loss": 1e-4, "gradient": 1e-4} | (tolerances or {}),
        "runs": {
            run: {
                "optimizer": {k: v for k, v in runs[run].items() if k not in ("lr_at", "movement_tolerance")},
                "movement_tolerance": runs[run].get("movement_tolerance", 1e-4),
                "lr_at": runs[run].get("lr_at", [runs[run]["lr"]] * steps),
                "loss": result["loss"],
                "grad_norms": [norms(gradients) for gradients in result["gradients"]],
                "movement_norms": norms(result["movements"]),
            }
            for run, result in exact.items()
        },
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({key: t.contiguous() for key, t in tensors.items()}, FOLDER / f"{name}.safetensors")
    (FOLDER / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")


def noisy_views(seed: int, sizes: list, images: int = 6) -> list:
    """Views of these sizes in float32: for each size one noise, and a noise of its own for each view."""
    generator = torch.Generator().manual_seed(seed)
    shared, views = {}, []
    for size in sizes:
        shape = (images, 3, size, size)
        noise = lambda: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
        if size not in shared:
            shared[size] = noise()
        views.append((shared[size] + 0.5 * noise()).float())
    return views


def resnet18(width: int = WIDTH) -> nn.Module:
    """torchvision's ResNet-18, `width` channels wide, with a 3x3 stem and without max-pool and classifier."""
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


def frozen(module: nn.Module) -> nn.Module:
    """A teacher: the module without gradients."""
    return module.requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves the teacher's parameters towards the student's of the same names; running statistics stay its own."""
    own = dict(student.named_parameters())
    for name, parameter in teacher.named_parameters():
        parameter.mul_(momentum).add_((1 - momentum) * own[name])


def pattern(name: str, shape: torch.Size) -> np.ndarray:
    """The float32 values of the tensor `name`: see tests/golden/README.md."""
    numel = math.prod(shape)
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    z = np.uint64(h) + np.arange(numel, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = z ^ (z >> np.uint64(31))
    u = (x >> np.uint64(40)).astype(np.float64) / 2**24
    s = 2 * u - 1
    last = name.rsplit(".", 1)[-1]
    if last in ("running_mean", "bias"):
        value = 0.1 * s
    elif last == "running_var":
        value = 0.5 + u
    elif len(shape) > 1:
        value = s * math.sqrt(3 / (numel // shape[0]))
    elif "backbone.layer" in name and name.endswith("bn2.weight"):
        value = 0.25 * (1 + 0.1 * s)
    else:
        value = 1 + 0.1 * s
    return value.astype(np.float32).reshape(shape)


def train(make_model, views: list, optimizer: dict, steps: int, dtype: torch.dtype, overrides: dict) -> dict:
    """The steps of one optimiser, and all that is compared afterwards."""
    model = make_model()
    start = {}
    for name, tensor in model.state_dict().items():
        integer = not tensor.is_floating_point()
        values = torch.zeros_like(tensor) if integer else torch.from_numpy(pattern(name, tensor.shape))
        start[name] = overrides.get(name, values)
    model.load_state_dict(start, strict=True)
    model.to(dtype).train()
    relu_inputs = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, x: relu_inputs.append(x[0].detach().double().clone()))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    update = make_optimizer(optimizer, parameters, getattr(model, "constant_lr", lambda name: False))
    rates = optimizer.get("lr_at", [optimizer["lr"]] * steps)
    losses, gradients = [], []
    for step in range(steps):
        model.zero_grad(set_to_none=True)
        loss = model.loss([view.to(dtype) for view in views], step)
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.double().clone() for n, p in parameters.items() if p.grad is not None})
        update(rates[step])
        if hasattr(model, "after_step"):
            model.after_step(step)
    state = {name: t.detach().clone() for name, t in model.state_dict().items()}
    floats = {name: t.double() for name, t in state.items() if t.is_floating_point()}
    return {
        "loss": losses,
        "gradients": gradients,
        "movements": {name: t - start[name].double() for name, t in floats.items()},
        "state": {name: floats.get(name, t) for name, t in state.items()},
        "relu_inputs": relu_inputs,
    }


def make_optimizer(c: dict, parameters: dict, constant_lr):
    """A function of the learning rate that takes one step from the gradients that the parameters hold.

    Parameters for which `constant_lr(name)` holds keep the peak rate `c["lr"]`.
    """
    if c["name"] == "lars":
        return lars(c, parameters, constant_lr)
    exclude = c["exclude_bias_and_norm"]
    groups = []
    for name, p in parameters.items():
        decay = 0.0 if exclude and p.ndim <= 1 else c["weight_decay"]
        groups.append({"params": [p], "weight_decay": decay, "constant": constant_lr(name)})
    if c["name"] == "sgd":
        optimizer = torch.optim.SGD(groups, lr=c["lr"], momentum=c["momentum"], nesterov=c["nesterov"])
    else:
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[c["name"]]
        optimizer = kind(groups, lr=c["lr"], betas=(c["beta1"], c["beta2"]), eps=c["eps"])

    def step(lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = c["lr"] if group["constant"] else lr
        optimizer.step()

    return step


def lars(c: dict, parameters: dict, constant_lr):
    """After https://github.com/facebookresearch/barlowtwins/blob/main/main.py."""
    velocities = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(lr: float) -> None:
        for name, w in parameters.items():
            if w.grad is None:
                continue
            update, v = w.grad, velocities[name]
            rate = c["lr"] if constant_lr(name) else lr
            if w.ndim > 1:
                update = update + c["weight_decay"] * w
                w_norm, update_norm = w.norm(), update.norm()
                if w_norm > 0 and update_norm > 0:
                    update = update * (c["trust_coefficient"] * w_norm / update_norm)
            else:
                rate = rate * c["bias_and_norm_lr_factor"]
            v.mul_(c["momentum"]).add_(update)
            w.sub_(rate * v)

    return step


def norms(tensors: dict) -> dict:
    return {name: t.norm().item() for name, t in tensors.items()}


def print_deviations(run: str, result: dict, exact: dict) -> None:
    """The largest relative deviation of each kind of value, by L2 norm for tensors."""
    print(f"{run}: losses {exact['loss']}")
    print("  loss", *(f"{abs(a - e) / abs(e):.1e}" for a, e in zip(result["loss"], exact["loss"], strict=True)))
    kinds = {f"gradients of step {i}": (r, e) for i, (r, e) in enumerate(zip(result["gradients"], exact["gradients"]))}
    kinds["movements"] = (result["movements"], exact["movements"])
    for kind, (ours, theirs) in kinds.items():
        relative = {n: ((ours[n] - e).norm() / e.norm()).item() for n, e in theirs.items() if e.norm() > 0}
        sizes = sorted(e.square().mean().sqrt().item() for e in theirs.values())
        worst = sorted(relative, key=relative.get, reverse=True)[:3]
        print(f"  {kind}: rms {sizes[0]:.1e} to {sizes[-1]:.1e};", *(f"{n} {relative[n]:.1e}" for n in worst))
    pairs = list(zip(result["relu_inputs"], exact["relu_inputs"], strict=True))
    if not pairs:
        return
    margin = min((e.abs().min() / (a - e).square().mean().sqrt()).item() for a, e in pairs)
    print(f"  relu: the input nearest to zero is {margin:.1f} times the rms error of its layer away")
