"""Writes the reference values of layers, computed by PyTorch in float64.

    python tests/python/make_layers.py

Made with torch 2.9.1 and safetensors. Writes layers.safetensors into tests/golden/layers; for each CASE the tensors
CASE.in.NAME, CASE.out, and CASE.grad.NAME, the gradients of sum(out * CASE.pattern).
crates/ssl-nn/tests/it/reference_layers.rs holds the Rust code to them. Running it again writes the same bytes.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "layers"
SEED = 41


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors: dict[str, torch.Tensor] = {}

    def case(name: str, f, **inputs: torch.Tensor) -> None:
        for x in inputs.values():
            if x.is_floating_point():
                x.requires_grad_()
        out = f(**inputs)
        pattern = normal(*out.shape)
        (out * pattern).sum().backward()
        tensors[f"{name}.out"], tensors[f"{name}.pattern"] = out.detach(), pattern
        for key, x in inputs.items():
            tensors[f"{name}.in.{key}"] = x.detach().clone()
            if x.is_floating_point():
                tensors[f"{name}.grad.{key}"] = x.grad

    case("rms_norm", lambda x, weight: F.rms_norm(x, (9,), weight, eps=1e-5), x=normal(2, 3, 9), weight=normal(9))
    case(
        "group_norm",
        lambda x, weight, bias: F.group_norm(x, 3, weight, bias, eps=1e-5),
        x=normal(2, 6, 3, 4),
        weight=normal(6),
        bias=normal(6),
    )
    case("softmax", lambda x: F.softmax(x, dim=1), x=3 * normal(2, 5, 3))
    case("log_softmax", lambda x: F.log_softmax(x, dim=-1), x=3 * normal(4, 7))
    classes = torch.tensor([3, 0, 4, 4, 1, 2])
    case("cross_entropy", lambda x, classes: F.cross_entropy(x, classes), x=3 * normal(6, 5), classes=classes)
    case(
        "cross_entropy_smoothed",
        lambda x, classes: F.cross_entropy(x, classes, label_smoothing=0.1),
        x=3 * normal(6, 5),
        classes=classes,
    )
    case(
        "soft_cross_entropy",
        lambda x, targets: F.cross_entropy(x, targets),
        x=3 * normal(6, 5),
        targets=F.softmax(normal(6, 5), dim=1),
    )
    for name, kernel, stride, padding in [("avg_pool", 3, 2, 1), ("avg_pool_rest", 2, 3, 0)]:
        case(name, lambda x, k=kernel, s=stride, p=padding: F.avg_pool2d(x, k, s, p), x=normal(2, 2, 7, 10))
    for name, size, antialias in [
        ("bicubic_up", (7, 6), False),
        ("bicubic_down", (2, 3), False),
        ("bicubic_antialias_up", (7, 6), True),
        ("bicubic_antialias_down", (2, 3), True),
    ]:
        case(name, lambda x, s=size, a=antialias: bicubic(x, size=s, antialias=a), x=normal(1, 2, 5, 4))
    # As DINO and DINOv2 do, from a grid of 4x4 to one of 6x3 with an offset of 0.1.
    for name, antialias in [("bicubic_offset", False), ("bicubic_antialias_offset", True)]:
        scale = (6.1 / 4, 3.1 / 4)
        case(name, lambda x, s=scale, a=antialias: bicubic(x, scale_factor=s, antialias=a), x=normal(1, 3, 4, 4))
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, FOLDER / "layers.safetensors")


def bicubic(x: torch.Tensor, **options) -> torch.Tensor:
    return F.interpolate(x, mode="bicubic", align_corners=False, **options)


if __name__ == "__main__":
    main()
