"""Three training steps of BYOL in float64, from equation 2 of https://arxiv.org/abs/2006.07733.

    python tests/reference/byol.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The loss is the squared distance of the unit vectors, in
both directions; projector and predictor are Linear, BN, ReLU, Linear, the first with a bias, the second without. The
target runs in training mode, sees both views, and follows after each step with the momentum of section 3.3.
"""

import math

import torch
from steps import ADAMW, LARS, SGD, WIDTH, follow, frozen, main, noisy_views, resnet18
from torch import nn

HIDDEN, DIM, PREDICTOR = 16, 12, 20
MOMENTUM, TOTAL_STEPS = 0.6, 5


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=False)
    )


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.projector = mlp(8 * WIDTH, HIDDEN, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projector(self.backbone(x))


class Byol(Projected):
    def __init__(self):
        super().__init__()
        self.predictor = mlp(DIM, PREDICTOR, DIM)
        self.teacher = frozen(Projected())

    def loss(self, views: list, step: int) -> torch.Tensor:
        x_1, x_2 = views
        q_1, q_2 = (self.predictor(self(x)) for x in (x_1, x_2))
        z_1, z_2 = (self.teacher(x).detach() for x in (x_1, x_2))
        return distance(q_1, z_2) + distance(q_2, z_1)

    def after_step(self, step: int) -> None:
        momentum = 1 - (1 - MOMENTUM) * (math.cos(math.pi * step / TOTAL_STEPS) + 1) / 2
        follow(self.teacher, self, momentum)


def distance(q: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The mean over the batch of the squared distance of the normalised rows."""
    unit = lambda v: v / v.norm(dim=1, keepdim=True)  # noqa: E731
    return (unit(q) - unit(z)).pow(2).sum(dim=1).mean()


if __name__ == "__main__":
    main(
        "byol",
        Byol,
        # Seeds: see simclr.py.
        noisy_views(503, [16, 16]),
        method={
            "name": "byol",
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "predictor_hidden": PREDICTOR,
            "momentum": MOMENTUM,
            "final_momentum": 1.0,
        },
        runs={"sgd": SGD, "adamw": ADAMW, "lars": LARS},
        total_steps=TOTAL_STEPS,
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer2.0.bn1.weight",
            "projector.0.weight",
            "predictor.3.weight",
            "backbone.bn1.running_mean",
            "teacher.backbone.conv1.weight",
            "teacher.projector.3.weight",
            "teacher.backbone.bn1.running_var",
            "teacher.backbone.bn1.num_batches_tracked",
        ],
        notes="Three steps of BYOL on one batch.",
    )
