"""Checks that an exported encoder is the torchvision or timm network it claims to be.

    python tests/python/check_export.py ENCODER.safetensors [--features FEATURES.safetensors]

Builds the network that the metadata of ENCODER describes and loads the weights with `strict=True`.
FEATURES, if given, holds `images` (B, 3, H, W), already normalised, and the `features` (B, D) that
ssl-vision computed from them; the other library's must differ by less than 1e-4. ResNets are those of
torchvision and, if it is installed and has the architecture, of timm; vision and Swin transformers are timm's.
The exit code is 0 if all agree.

The integration tests write such pairs of files into the folder SSL_VISION_EXPORT_DIR:

    SSL_VISION_EXPORT_DIR=/tmp/export cargo test -p ssl-vision-tests export
    python tests/python/check_export.py /tmp/export/resnet18.safetensors \
        --features /tmp/export/resnet18-features.safetensors
"""

import argparse
import json
import sys
from functools import partial

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

try:
    import timm
except ImportError:
    timm = None

RESNETS = ("resnet18", "resnet34", "resnet50")
REGNETS = tuple(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf"))
# SEER's, which torchvision has no function for: depth, w_0, w_a, w_m, group width.
SEER = {"regnet_y_256gf": (27, 640, 230.83, 2.53, 373), "regnet_y_10b": (27, 1744, 620.83, 2.52, 1010)}
# Width, depth and heads.
VITS = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}
# Width and depths.
SWINS = {
    "swin_tiny": (96, [2, 2, 6, 2]),
    "swin_small": (96, [2, 2, 18, 2]),
    "swin_base": (128, [2, 2, 18, 2]),
    "swin_large": (192, [2, 2, 18, 2]),
}
TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder")
    parser.add_argument("--features")
    args = parser.parse_args()

    backbone = read_backbone(args.encoder)
    weights = load_file(args.encoder)
    if backbone["name"] in VITS:
        networks = vits(**backbone)
    elif backbone["name"] in SWINS:
        networks = swins(**backbone)
    elif backbone["name"] in RESNETS:
        networks = resnets(**backbone)
    else:
        networks = regnets(**backbone)
    pair = load_file(args.features) if args.features else None
    agree = True
    for name, network in networks.items():
        network.load_state_dict(weights, strict=True)
        # PyTorch itself lets a file pass that lacks `num_batches_tracked`.
        if missing := network.state_dict().keys() - weights.keys():
            sys.exit(f"{args.encoder}: lacks {', '.join(sorted(missing))}")
        print(f"{name}: {len(weights)} tensors loaded with strict=True")
        if pair:
            difference = max_difference(network, pair["images"], pair["features"])
            verdict = "ok" if difference < TOLERANCE else f"too large, must be below {TOLERANCE:g}"
            print(f"{name}: features {list(pair['features'].shape)}, max |diff| {difference:.2e}: {verdict}")
            agree &= difference < TOLERANCE
    return 0 if agree else 1


def read_backbone(path: str) -> dict:
    """The arguments of `resnets`, `regnets`, `vits` or `swins` from the metadata of an encoder."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "backbone" not in metadata:
        sys.exit(f"{path}: no metadata `backbone`; was it exported by ssl-vision?")
    backbone = json.loads(metadata["backbone"])
    known = (*RESNETS, *REGNETS, *SEER, *VITS, *SWINS)
    if backbone["name"] not in known:
        sys.exit(f"{path}: unknown architecture {backbone['name']}; known: {', '.join(known)}")
    backbone.setdefault("vit", {})
    if backbone["name"] in VITS:
        keys = ("name", "image_size", "patch_size", "width", "depth", "vit")
        for key, value in zip(keys[3:5], VITS[backbone["name"]]):
            backbone.setdefault(key, value)
    elif backbone["name"] in SWINS:
        keys = ("name", "image_size", "patch_size", "width", "depths", "window")
        width, depths = SWINS[backbone["name"]]
        backbone = {"width": width, "depths": depths, "window": 7} | backbone
    else:
        keys = ("name", "stem", "width") if backbone["name"] in RESNETS else ("name", "stem")
    print(f"{path}: " + ", ".join(f"{key} {backbone[key]}" for key in keys))
    return {key: backbone[key] for key in keys}


def resnets(name: str, stem: str, width: int) -> dict[str, nn.Module]:
    """torchvision's network, and timm's where it has one of these sizes."""
    networks = {f"torchvision {torchvision.__version__}": torchvision_resnet(name, stem, width)}
    if timm is None:
        print("timm: not installed")
    elif (stem, width) != ("imagenet", 64):
        print("timm: passed over, it has the ImageNet stem and width 64 only")
    else:
        networks[f"timm {timm.__version__}"] = timm.create_model(name, num_classes=0)
    return networks


def regnets(name: str, stem: str) -> dict[str, nn.Module]:
    """torchvision's network without its classifier; timm has other names for the same tensors."""
    if name in SEER:
        depth, w_0, w_a, w_m, group_width = SEER[name]
        params = torchvision.models.regnet.BlockParams.from_init_params(
            depth=depth, w_0=w_0, w_a=w_a, w_m=w_m, group_width=group_width, se_ratio=0.25
        )
        network = torchvision.models.RegNet(params)
    else:
        network = getattr(torchvision.models, name)(weights=None)
    if stem == "cifar":
        network.stem[0] = nn.Conv2d(3, 32, kernel_size=3, stride=1, padding=1, bias=False)
    network.fc = nn.Identity()
    return {f"torchvision {torchvision.__version__}": network}


def vits(name: str, image_size: int, patch_size: int, width: int, depth: int, vit: dict) -> dict[str, nn.Module]:
    """timm's network with these sizes and the parts `vit`, where they are not its own."""
    if timm is None:
        sys.exit("timm: not installed, and vision transformers are compared with nothing else")
    arguments = {"img_size": image_size, "patch_size": patch_size, "num_classes": 0}
    arguments |= {"embed_dim": width, "depth": depth, "num_heads": width // 64}
    if not vit:
        network = timm.create_model(f"{name}_patch16_224", **arguments)
        return {f"timm {timm.__version__}": network}
    arguments["mlp_ratio"] = vit["mlp_ratio"]
    arguments["norm_layer"] = partial(nn.LayerNorm, eps=vit["norm_eps"])
    arguments["init_values"] = vit["layer_scale"] or None
    mean = vit["pooling"] == "mean"
    if vit["qkv_bias"] == "query_value":
        if mean:
            sys.exit("timm: its BEiT norms after the mean, ours before it")
        network = timm.models.beit.Beit(
            use_abs_pos_emb=vit["positions"] != "none",
            use_shared_rel_pos_bias=vit["relative_positions"] == "shared",
            use_rel_pos_bias=vit["relative_positions"] == "each",
            global_pool="token",
            **arguments,
        )
        return {f"timm's BEiT {timm.__version__}": network}
    if vit["mlp"] == "swiglu":
        # timm counts gates and values together.
        hidden = -(-int(width * vit["mlp_ratio"]) * 2 // 3 // 8) * 8
        arguments |= {"mlp_ratio": 2 * hidden / width, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    else:
        arguments["act_layer"] = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}[vit["mlp"]]
    network = timm.models.vision_transformer.VisionTransformer(
        class_token=vit["class_token"],
        reg_tokens=vit["registers"],
        no_embed_class=vit["positions"] == "learned_patches",
        pos_embed="none" if vit["positions"] == "none" else "learn",
        qkv_bias=vit["qkv_bias"] == "all",
        qk_norm=vit["qk_norm"],
        pre_norm=vit["norm_first"],
        global_pool="avg" if mean else "token",
        fc_norm=False,
        **arguments,
    )
    return {f"timm {timm.__version__}": network}


def swins(name: str, image_size: int, patch_size: int, width: int, depths: list, window: int) -> dict[str, nn.Module]:
    """timm's network with these sizes."""
    if timm is None:
        sys.exit("timm: not installed, and Swin Transformers are compared with nothing else")
    network = timm.models.swin_transformer.SwinTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depths=depths,
        num_heads=[width // 32 << stage for stage in range(len(depths))],
        window_size=window,
        num_classes=0,
    )
    return {f"timm {timm.__version__} with the sizes of this {name}": network}


def torchvision_resnet(name: str, stem: str, width: int) -> nn.Module:
    """torchvision's network without its classifier, with another stem or width if need be."""
    network = getattr(torchvision.models, name)(weights=None)
    if width != 64:
        stages = [network.layer1, network.layer2, network.layer3, network.layer4]
        block, depths = type(stages[0][0]), [len(stage) for stage in stages]
        network.inplanes = width
        network.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        network.bn1 = nn.BatchNorm2d(width)
        for i, depth in enumerate(depths):
            stage = network._make_layer(block, width << i, depth, stride=2 if i else 1)
            setattr(network, f"layer{i + 1}", stage)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


@torch.inference_mode()
def max_difference(network: nn.Module, images: torch.Tensor, features: torch.Tensor) -> float:
    """Largest absolute difference between `features` and those of `network` in evaluation mode."""
    computed = network.eval()(images)
    if computed.shape != features.shape:
        sys.exit(f"features are {list(features.shape)}, the network computes {list(computed.shape)}")
    return (computed - features).abs().max().item()


if __name__ == "__main__":
    sys.exit(main())
