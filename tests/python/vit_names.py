"""Vision transformers of timm and transformers beside ours: their names, and what they compute.

    python tests/python/vit_names.py make FOLDER
    python tests/python/vit_names.py check FOLDER

`make` writes small networks with random weights, as each library names them, and the tokens that it
computes from two images: tests/golden/vit_names holds them, and the tests of ssl-backbones read them.
`check` goes the other way. It reads networks that ssl-backbones named for each library and the tokens
that it computed, loads them strictly, and fails if a tensor is missing, left over or of another shape,
or if a token differs by 1e-4 or more. The tests of ssl-backbones write them:

    SSL_VISION_EXPORT_DIR=/tmp/names cargo test -p ssl-backbones --test it vit_names
    python tests/python/vit_names.py check /tmp/names

Needs torch, timm, transformers and safetensors. The cases bear the same names as in the test.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.layers import QuickGELU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

TOLERANCE = 1e-4
SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 0}
HF_SIZES = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-6,
    "attn_implementation": "eager",
}
SWIGLU = {"mlp_ratio": 2.66667 * 2, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}


class Timm:
    """A network of timm; `official` reads its tensors under the names of DINOv2's official code. With `pooled` the
    embedding is compared in place of the tokens."""

    def __init__(self, build, official=False, pooled=False):
        self.build, self.official, self.pooled = build, official, pooled

    def network(self):
        return self.build()

    def names(self, network):
        tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        return to_official(tensors) if self.official else tensors

    def load(self, weights):
        network = self.build()
        if self.official:
            weights = checkpoint_filter_fn(dict(weights), network)
        network.load_state_dict(weights, strict=True)
        return network

    def tokens(self, network, images):
        tokens = network.forward_features(images)
        return network.forward_head(tokens, pre_logits=True)[:, None] if self.pooled else tokens


class Transformers:
    """A network of transformers, through the files that it saves and reads."""

    def __init__(self, model, config, prefix="", first=None, **arguments):
        self.model, self.config, self.prefix, self.first = model, config, prefix, first
        self.arguments = arguments

    def network(self):
        return self.model(self.config(), **self.arguments)

    def names(self, network):
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            weights = load_file(Path(folder, "model.safetensors"))
        weights = {self.prefix + name.removeprefix(self.prefix): tensor for name, tensor in weights.items()}
        for name in weights:
            if name.endswith("mask_token"):
                weights[name] = torch.zeros_like(weights[name])
        return weights

    def load(self, weights):
        with tempfile.TemporaryDirectory() as folder:
            self.config().save_pretrained(folder)
            save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
            network, info = self.model.from_pretrained(folder, output_loading_info=True, **self.arguments)
        wrong = {key: names for key, names in info.items() if names and key != "error_msgs"}
        if wrong or info.get("error_msgs"):
            raise ValueError(f"not loaded strictly: {wrong} {info.get('error_msgs')}")
        return network

    def tokens(self, network, images):
        output = network(images)
        if self.first == "pooled":
            return output.pooler_output[:, None]
        tokens = output.last_hidden_state
        # A masked autoencoder shuffles its patches, and only the class token does not mind.
        return tokens[:, : self.first] if self.first else tokens


def to_official(tensors):
    """timm's names of DINOv2 as those of the official code."""
    names = {"reg_token": "register_tokens"}
    gated = any(name.endswith("mlp.fc1.weight") and tensor.shape[0] == 64 for name, tensor in tensors.items())
    official = {}
    for name, tensor in tensors.items():
        name = names.get(name, name)
        if gated:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        official[name] = tensor
    if "register_tokens" in official:
        positions = official["pos_embed"]
        official["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    official["mask_token"] = torch.zeros(1, 12)
    return official


def cases():
    vit = partial(VisionTransformer, **SIZES)
    beit = partial(Beit, **SIZES, global_pool="token", use_abs_pos_emb=False, init_values=0.1)
    registers = {"reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5}
    no_mlp = {key: value for key, value in HF_SIZES.items() if key != "intermediate_size"}
    hf = transformers
    dinov2 = partial(hf.Dinov2Config, **no_mlp)
    with_registers = partial(hf.Dinov2WithRegistersConfig, **no_mlp, num_register_tokens=2)
    mae = partial(hf.ViTMAEConfig, **HF_SIZES, mask_ratio=0.0)
    beits = {**HF_SIZES, "use_mean_pooling": False, "use_mask_token": False}
    clip = partial(hf.CLIPVisionConfig, **{**HF_SIZES, "layer_norm_eps": 1e-5})
    no_pooler = {"add_pooling_layer": False}
    shared, each = "use_shared_relative_position_bias", "use_relative_position_bias"
    return {
        "timm_vit": Timm(vit),
        "timm_registers": Timm(partial(vit, **registers)),
        "timm_all_positions": Timm(partial(vit, reg_tokens=1)),
        "timm_swiglu": Timm(partial(vit, **SWIGLU)),
        "timm_qk_norm": Timm(partial(vit, qk_norm=True, qkv_bias=False)),
        "timm_no_class": Timm(partial(vit, class_token=False, global_pool="avg", fc_norm=False)),
        "timm_clip": Timm(
            partial(vit, pre_norm=True, act_layer=QuickGELU, norm_layer=partial(nn.LayerNorm, eps=1e-5))
        ),
        "timm_beit_shared": Timm(partial(beit, use_shared_rel_pos_bias=True)),
        "timm_beit_each": Timm(partial(beit, use_rel_pos_bias=True)),
        "dino": Timm(vit),
        "dinov2": Timm(partial(vit, init_values=1e-5), official=True),
        "dinov2_registers": Timm(partial(vit, **registers), official=True),
        "dinov2_swiglu": Timm(partial(vit, init_values=1e-5, **SWIGLU), official=True),
        "mae": Timm(vit),
        "transformers_vit": Transformers(hf.ViTModel, partial(hf.ViTConfig, **HF_SIZES), **no_pooler),
        "transformers_vit_mae": Transformers(hf.ViTMAEModel, mae, first=1),
        "transformers_dinov2": Transformers(hf.Dinov2Model, dinov2),
        "transformers_dinov2_swiglu": Transformers(hf.Dinov2Model, partial(dinov2, use_swiglu_ffn=True)),
        "transformers_dinov2_registers": Transformers(hf.Dinov2WithRegistersModel, with_registers),
        "transformers_beit_shared": Transformers(
            hf.BeitModel, partial(hf.BeitConfig, **beits, **{shared: True}), **no_pooler
        ),
        "transformers_beit_each": Transformers(
            hf.BeitModel, partial(hf.BeitConfig, **beits, **{each: True}), **no_pooler
        ),
        "transformers_data2vec": Transformers(
            hf.Data2VecVisionModel,
            partial(hf.Data2VecVisionConfig, **beits, **{shared: True}),
            **no_pooler,
        ),
        "transformers_clip": Transformers(hf.CLIPVisionModel, clip, prefix="vision_model.", first="pooled"),
        "timm_fc_norm": Timm(partial(vit, global_pool="avg", fc_norm=True), pooled=True),
        "transformers_beit_fc_norm": Transformers(
            hf.BeitModel, partial(hf.BeitConfig, **{**beits, "use_mean_pooling": True}, **{each: True}), first="pooled"
        ),
    }


@torch.no_grad()
def make(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, case) in enumerate(cases().items()):
        generator = torch.Generator().manual_seed(number)
        network = case.network().eval()
        for key, tensor in network.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            norm = tensor.ndim == 1 and key.endswith("weight")
            tensor.copy_(1 + noise if norm else noise)
        images = torch.randn(2, 3, 8, 8, generator=generator)
        weights = {key: tensor.contiguous() for key, tensor in case.names(network).items()}
        pair = {"in.images": images, "out.tokens": case.tokens(network, images).contiguous()}
        save_file({**weights, **pair}, folder / f"{name}.safetensors")
        print(f"{name}: {len(weights)} tensors")
    return 0


@torch.no_grad()
def check(folder: Path) -> int:
    agree = True
    for name, case in cases().items():
        tensors = load_file(folder / f"{name}.safetensors")
        images, tokens = tensors.pop("in.images"), tensors.pop("out.tokens")
        try:
            network = case.load(tensors).eval()
        except (ValueError, RuntimeError) as error:
            print(f"{name}: {error}")
            agree = False
            continue
        computed = case.tokens(network, images)
        difference = (computed - tokens[:, : computed.shape[1]]).abs().max().item()
        verdict = "ok" if difference < TOLERANCE else f"too large, must be below {TOLERANCE:g}"
        print(f"{name}: {len(tensors)} tensors loaded strictly, max |diff| {difference:.2e}: {verdict}")
        agree &= difference < TOLERANCE
    print(f"timm {timm.__version__}, transformers {transformers.__version__}")
    return 0 if agree else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["make", "check"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    return {"make": make, "check": check}[args.command](args.folder)


if __name__ == "__main__":
    sys.exit(main())
