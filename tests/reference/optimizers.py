"""Trajectories of LARC and LARS, and schedules of momenta, in numpy, from the published formulas.

Writes tests/golden/optim/{larc,larc_clip,lars_lr_in_momentum,lars_barlow_groups,lars_constant_lr,schedules_momentum}.safetensors
and their entries in tests/golden/manifest.json; `cargo xtask parity` compares ours with them. All arithmetic is in float64
on inputs that were rounded to float32. Made with numpy 2.4.6 and safetensors 0.8.0, of which nothing but the random numbers
depends on the version.

LARC is NVIDIA apex's rule (`apex/parallel/LARC.py`), used by SwAV and SEER; LARS is You et al. (2017) as in the code of
SimCLR (rate inside the velocity) and of Barlow Twins (two groups, 0.2 and 0.0048).
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ORIGIN = "formula: tests/reference/optimizers.py"
STEPS = 6
RATES = [0.05, 0.2, 0.4, 0.3, 0.1, 0.02]
SHAPES = {"w": (4, 3), "b": (5,), "n": (3,), "z": (2, 2)}


def inputs(seed: int) -> tuple[dict, dict]:
    """Initial values and the gradients of every step. `z` starts at 0, and `n` has no gradient in the third step."""
    rng = np.random.default_rng(seed)
    init = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    init["z"][:] = 0
    grads = {name: rng.normal(size=(STEPS, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    grads["n"][2] = 0
    return init, grads


def trajectory(seed: int, update) -> dict:
    """The tensors of a case; `update(name, w, g, v, step)` returns the new parameter and velocity."""
    init, grads = inputs(seed)
    tensors = {}
    for name in SHAPES:
        w, v = init[name].astype(np.float64), np.zeros(SHAPES[name])
        path = []
        for step in range(STEPS):
            w, v = update(name, w, grads[name][step].astype(np.float64), v, step)
            path.append(w)
        tensors[f"in.init.{name}"] = init[name]
        tensors[f"in.grads.{name}"] = grads[name]
        tensors[f"out.params.{name}"] = np.stack(path).astype(np.float32)
    return tensors


def larc(options: dict):
    """apex: the gradient of every parameter, biases included, is scaled; then SGD with momentum and without decay."""

    def update(name, w, g, v, step):
        lr, decay = options["lrs"][step], options["weight_decay"]
        w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
        if w_norm != 0 and g_norm != 0:
            adaptive = options["trust_coefficient"] * w_norm / (g_norm + decay * w_norm + options["eps"])
            if options["clip"]:
                adaptive = min(adaptive / lr, 1)
            g = adaptive * (g + decay * w)
        v = options["momentum"] * v + g
        return w - lr * v, v

    return update


def lars(options: dict):
    """Decay and trust ratio for tensors of rank 2 and more; the others take a plain step at a rate of their own."""

    def update(name, w, g, v, step):
        lr = options["lr"] if name in options["constant_lr"] else options["lrs"][step]
        if w.ndim > 1:
            g = g + options["weight_decay"] * w
            w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
            g = (options["trust_coefficient"] * w_norm / g_norm if w_norm > 0 and g_norm > 0 else 1.0) * g
        else:
            lr = lr * options["bias_and_norm_lr_factor"]
        if options["lr_in_momentum"]:
            v = options["momentum"] * v + lr * g
            return w - v, v
        v = options["momentum"] * v + g
        return w - lr * v, v

    return update


def options(**others) -> dict:
    """Settings under the names of our recipes, with the rate of every step."""
    common = {
        "steps": STEPS, "lr": 0.4, "lrs": RATES, "momentum": 0.9, "nesterov": False, "weight_decay": 0.1,
        "trust_coefficient": 0.001, "separate_norms": False, "eps": 1e-8, "lr_in_momentum": False, "clip": False,
        "exclude_bias_and_norm": True, "bias_and_norm_lr_factor": 1.0, "constant_lr": [],
    }
    return common | others


def schedules() -> tuple[dict, dict]:
    """Momenta of teachers: BYOL's and DINO's cosine, MSN's line over 1.25 times the run, MoCo's constant."""
    t = np.arange(60)
    series = {
        "cosine": {"symbol": "momentum_cosine", "start": 0.99, "end": 1.0, "steps": 50},
        "linear": {"symbol": "momentum_linear", "start": 0.996, "end": 1.0, "steps": 62.5},
        "constant": {"symbol": "momentum_constant", "start": 0.999},
    }
    way = np.minimum(t / 50, 1)
    tensors = {
        "out.f64.cosine": 1 - (1 - 0.99) * (np.cos(np.pi * way) + 1) / 2,
        "out.f64.linear": 0.996 + np.minimum(t / 62.5, 1) * (1 - 0.996),
        "out.f64.constant": np.full(60, 0.999),
    }
    return series, tensors


def main() -> None:
    # apex has 0.001; 0.3 and small rates make the clipped ratio reach 1 in some steps and not in others.
    apex = {"separate_norms": True, "exclude_bias_and_norm": False}
    cases = {
        "larc": (larc, options(**apex), 11, "apex LARC without clip, as SwAV and SEER"),
        "larc_clip": (larc, options(**apex, clip=True, trust_coefficient=0.3), 12, "apex LARC with clip"),
        "lars_lr_in_momentum": (lars, options(lr_in_momentum=True), 13, "rate inside the velocity, as SimCLR"),
        "lars_barlow_groups": (
            lars, options(lr=0.2, bias_and_norm_lr_factor=0.0048 / 0.2), 14, "rates 0.2 and 0.0048, as Barlow Twins",
        ),
        "lars_constant_lr": (
            lars, options(constant_lr=["n", "w"]), 15, "`constant_lr` keep the peak `lr`, as SimSiam's predictor",
        ),
    }
    entries = []
    for name, (rule, settings, seed, note) in cases.items():
        note += (
            ". lrs: the rate of each step. in.grads.* [steps,...] given gradients; out.params.*[s] = parameter after step"
            " s+1. `z` starts at 0 and the gradient of `n` is 0 in step 3: both take the plain step there"
            + (", without decay." if rule is larc else ".")
        )
        entries.append(entry(name, settings, note, trajectory(seed, rule(settings)), [1e-6, 1e-6]))
    series, tensors = schedules()
    note = "F64 arrays, index = step. 1-(1-m0)(cos(pi t/T)+1)/2; m0+t(1-m0)/(1.25 T); constant."
    entries.append(entry("schedules_momentum", series, note, tensors, [1e-9, 1e-12]))
    write_manifest(entries)


def entry(case: str, params: dict, notes: str, tensors: dict, tolerance: list) -> dict:
    """Writes the tensors of a case and returns its entry."""
    file = f"optim/{case}.safetensors"
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, GOLDEN / file)
    described = {name: {"dtype": str(t.dtype), "shape": list(t.shape)} for name, t in tensors.items()}
    rtol, atol = tolerance
    return {
        "file": file, "area": "optim", "case": case, "origin": ORIGIN, "params": params, "notes": notes,
        "rtol": rtol, "atol": atol, "tensors": described,
    }


def write_manifest(entries: list) -> None:
    """Puts the entries in the place of those of the last run, each on a line, the others as they stand."""
    path = GOLDEN / "manifest.json"
    lines = [line.rstrip(",") for line in path.read_text().splitlines()[1:-1]]
    lines = [line for line in lines if json.loads(line)["origin"] != ORIGIN]
    lines += [json.dumps(entry) for entry in entries]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
