"""Three training steps of MoCo v3 in float64, from algorithm 1 of https://arxiv.org/abs/2104.02057.

    python tests/reference/moco_v3.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The heads are those of a ResNet. The momentum encoder
moves before its keys are made, so step t + 1 sees the update with its own momentum.
"""

import math

import torch
from steps import ADAMW, LARS, SGD, WIDTH, follow, frozen, main, noisy_views, resnet18
from torch import nn
from torch.nn.functional import normalize

HIDDEN, DIM = 16, 12
TEMPERATURE, MOMENTUM, TOTAL_STEPS = 0.5, 0.9, 10


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.projector = nn.Sequential(
            nn.Linear(8 * WIDTH, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, DIM, bias=False),
            nn.BatchNorm1d(DIM, affine=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projector(self.backbone(x))


class MocoV3(Encoder):
    def __init__(self):
        super().__init__()
        self.predictor = nn.Sequential(
            nn.Linear(DIM, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM, bias=False)
        )
        self.teacher = frozen(Encoder())

    def loss(self, views: list, step: int) -> torch.Tensor:
        q_1, q_2 = (self.predictor(self(view)) for view in views)
        with torch.no_grad():
            k_1, k_2 = (self.teacher(view) for view in views)
        return ctr(q_1, k_2) + ctr(q_2, k_1)

    def after_step(self, step: int) -> None:
        m = 1 - (1 - MOMENTUM) * 0.5 * (1 + math.cos(math.pi * (step + 1) / TOTAL_STEPS))
        follow(self.teacher, self, m)


def ctr(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    logits = normalize(q, dim=1) @ normalize(k, dim=1).T / TEMPERATURE
    total = sum(torch.log(row.exp().sum()) - row[i] for i, row in enumerate(logits))
    return 2 * TEMPERATURE * total / len(q)


if __name__ == "__main__":
    main(
        "moco_v3",
        MocoV3,
        noisy_views(1, [16, 16]),
        method={
            "name": "moco-v3",
            "projector_layers": 2,
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "predictor_hidden": HIDDEN,
            "predictor_last_norm": False,
            "temperature": TEMPERATURE,
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
            "teacher.projector.0.weight",
            "teacher.backbone.bn1.running_mean",
        ],
        notes="Three steps of MoCo v3 on one batch.",
    )
