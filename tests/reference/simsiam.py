"""Three training steps of SimSiam in float64, from equations 1 and 3 of https://arxiv.org/abs/2011.10566.

    python tests/reference/simsiam.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The projector has three layers and ends in a BN that
learns nothing; the predictor is Linear, BN, ReLU, Linear, only the last with a bias, and keeps its learning rate.
"""

import torch
from steps import ADAMW, LARS, SGD, WIDTH, main, noisy_views, resnet18
from torch import nn

HIDDEN, DIM, PREDICTOR = 16, 12, 6
# A falling rate, which the predictor does not follow.
FALLING = [1.0, 0.7, 0.2]


class SimSiam(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.projector = nn.Sequential(
            nn.Linear(8 * WIDTH, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, DIM, bias=False),
            nn.BatchNorm1d(DIM, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(DIM, PREDICTOR, bias=False), nn.BatchNorm1d(PREDICTOR), nn.ReLU(), nn.Linear(PREDICTOR, DIM)
        )

    def loss(self, views: list, step: int) -> torch.Tensor:
        z_1, z_2 = (self.projector(self.backbone(x)) for x in views)
        p_1, p_2 = self.predictor(z_1), self.predictor(z_2)
        return distance(p_1, z_2.detach()) / 2 + distance(p_2, z_1.detach()) / 2

    def constant_lr(self, name: str) -> bool:
        return name.startswith("predictor.")


def distance(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """D: the negative cosine, its mean over the batch."""
    rows = [-torch.dot(a, b) / (a.norm() * b.norm()) for a, b in zip(p, z, strict=True)]
    return sum(rows) / len(rows)


def falling(optimizer: dict) -> dict:
    return optimizer | {"lr_at": [optimizer["lr"] * factor for factor in FALLING]}


if __name__ == "__main__":
    main(
        "simsiam",
        SimSiam,
        # Seeds: see simclr.py.
        noisy_views(43, [16, 16]),
        method={
            "name": "simsiam",
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "projector_layers": 3,
            "predictor_hidden": PREDICTOR,
            "constant_predictor_lr": True,
            "stop_gradient": True,
        },
        runs={"sgd": falling(SGD) | {"movement_tolerance": 1e-3}, "adamw": falling(ADAMW), "lars": falling(LARS)},
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer2.0.bn1.weight",
            "projector.0.weight",
            "predictor.3.weight",
            "predictor.3.bias",
            "backbone.bn1.running_mean",
            "projector.7.running_var",
            "projector.7.num_batches_tracked",
        ],
        notes="Three steps of SimSiam on one batch, with a falling learning rate.",
    )
