"""Three training steps of VICReg in float64, from section 4.1 of https://arxiv.org/abs/2105.04906.

    python tests/reference/vicreg.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The projector has three layers, the first two with a bias,
and no norm at its end. As in the authors' code, and unlike the paper, the invariance is a mean over all entries, and the
variance part is the mean of the two views' rather than their sum.
"""

import torch
from steps import ADAMW, LARS, SGD, WIDTH, main, noisy_views, resnet18
from torch import nn

HIDDEN, DIM = 16, 12
INVARIANCE, VARIANCE, COVARIANCE = 5.0, 4.0, 1.0


class VicReg(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.projector = nn.Sequential(
            nn.Linear(8 * WIDTH, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, DIM, bias=False),
        )

    def loss(self, views: list, step: int) -> torch.Tensor:
        z, z_prime = (self.projector(self.backbone(x)) for x in views)
        invariance = (z - z_prime).pow(2).mean()
        variance = (variance_part(z) + variance_part(z_prime)) / 2
        covariance = covariance_part(z) + covariance_part(z_prime)
        return INVARIANCE * invariance + VARIANCE * variance + COVARIANCE * covariance


def variance_part(z: torch.Tensor) -> torch.Tensor:
    """Equations 1 and 2, with gamma = 1 and epsilon = 1e-4."""
    columns = [torch.sqrt(column.var(correction=1) + 1e-4) for column in z.T]
    return sum(torch.clamp(1 - s, min=0) for s in columns) / len(columns)


def covariance_part(z: torch.Tensor) -> torch.Tensor:
    """Equations 3 and 4."""
    n, d = z.shape
    mean = z.mean(dim=0)
    covariance = sum(torch.outer(row - mean, row - mean) for row in z) / (n - 1)
    return sum(covariance[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d


if __name__ == "__main__":
    main(
        "vicreg",
        VicReg,
        # Seeds: see simclr.py.
        noisy_views(3, [16, 16]),
        method={
            "name": "vicreg",
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "projector_layers": 3,
            "invariance_weight": INVARIANCE,
            "variance_weight": VARIANCE,
            "covariance_weight": COVARIANCE,
            "halve_variance": True,
        },
        runs={"sgd": SGD, "adamw": ADAMW, "lars": LARS},
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer2.0.bn1.weight",
            "projector.0.weight",
            "projector.6.weight",
            "backbone.bn1.running_mean",
            "projector.4.running_var",
            "projector.4.num_batches_tracked",
        ],
        notes="Three steps of VICReg on one batch.",
    )
