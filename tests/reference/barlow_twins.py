"""Three training steps of Barlow Twins in float64, from equations 1 and 2 of https://arxiv.org/abs/2103.03230.

    python tests/reference/barlow_twins.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The projector has three layers without biases and no norm
at its end; the cross-correlation is a loop over its entries, of columns with mean 0 and biased variance 1 (plus 1e-5, as
in the authors' batch norm). The LARS run has the authors' rate of its own for biases and norms.
"""

import torch
from steps import ADAMW, LARS, SGD, WIDTH, main, noisy_views, resnet18
from torch import nn

HIDDEN, DIM = 16, 12
LAMBDA, SCALE = 0.05, 0.1


class BarlowTwins(nn.Module):
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
        )

    def loss(self, views: list, step: int) -> torch.Tensor:
        z_a, z_b = (self.projector(self.backbone(x)) for x in views)
        return SCALE * barlow_twins(standard(z_a), standard(z_b))


def standard(z: torch.Tensor) -> torch.Tensor:
    return (z - z.mean(dim=0)) / torch.sqrt(z.var(dim=0, correction=0) + 1e-5)


def barlow_twins(z_a: torch.Tensor, z_b: torch.Tensor) -> torch.Tensor:
    n, d = z_a.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            c_ij = torch.dot(z_a[:, i], z_b[:, j]) / n
            total = total + ((1 - c_ij) ** 2 if i == j else LAMBDA * c_ij**2)
    return total


if __name__ == "__main__":
    main(
        "barlow_twins",
        BarlowTwins,
        # Seeds: see simclr.py.
        noisy_views(21, [16, 16]),
        method={
            "name": "barlow-twins",
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "projector_layers": 3,
            "lambda": LAMBDA,
            "loss_scale": SCALE,
        },
        runs={"sgd": SGD, "adamw": ADAMW, "lars": LARS | {"bias_and_norm_lr_factor": 0.024}},
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer2.0.bn1.weight",
            "projector.0.weight",
            "projector.6.weight",
            "backbone.bn1.running_mean",
            "projector.4.running_var",
            "projector.4.num_batches_tracked",
        ],
        notes="Three steps of Barlow Twins on one batch.",
    )
