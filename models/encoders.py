"""Frozen image encoders around a given network: CLIP, and text-free ones (docs/method.md 2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from utils.checkpoint import fingerprint
from utils.errors import UserError

IDENTITY_MAPS = 5  # feature maps that the identity loss compares, as many as RN101 has
LIGHT_STRIDES = (4, 8)  # the maps whose averages follow a photograph's brightness most steadily


class FrozenEncoder(nn.Module):
    """The part that all encoders share: preparing images, and weights that never change.

    Args:
        name: shown to people and written to files.
        model: the network; it is frozen and converted to fp32.
        input_size: side of its square input, in pixels.
        mean: of each channel, for inputs in [0, 1].
        std: likewise.
    """

    has_text = False
    needs_calibration = False  # whether `calibrate` should see typical images before training

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
        # Channels-last slows only weight gradients down, and a frozen network has none.
        self.model = model.float().requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the network's weights and its kinds of layers, 64 hexadecimal digits."""
        layers = sorted({type(layer).__name__ for layer in self.model.modules()})
        return fingerprint(self.model.state_dict(), *layers)

    @property
    def embedding_name(self) -> str:
        """What tells the embeddings of one encoder from another's: a name for a file of them."""
        return self.fingerprint[:32]

    def prepare(self, images: Tensor) -> Tensor:
        """Resize (N, 3, h, w) in [0, 1] straight to the input size, no antialias; normalise."""
        size = (self.input_size, self.input_size)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=False)
        normalised = (images - self.mean) / self.std
        return normalised.contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, h, w) in [0, 1], of any size, as (N, D), L2-normalised."""
        raise NotImplementedError

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps of the identity loss, each (N, C, h, w), of such images."""
        raise NotImplementedError

    def embed_and_feature_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute `embed` and `feature_maps` in one pass, where one encoder serves both losses."""
        raise NotImplementedError


class CLIPEncoder(FrozenEncoder):
    """A CLIP model of open_clip; its embeddings share a space with texts."""

    has_text = True

    @cached_property
    def dim(self) -> int:
        """The embedding's length D."""
        with torch.no_grad():
            return self.embed(self.mean.new_zeros(1, 3, 1, 1)).shape[1]

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, h, w) in [0, 1], of any size, as (N, D), L2-normalised."""
        return F.normalize(self.model.encode_image(self.prepare(images)), dim=-1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Compute five maps: the stem's output after its average pool, then layer1 to layer4.

        Raises:
            UserError: the image tower is not one of CLIP's ResNets.
        """
        tower = self._resnet()
        maps = [tower.stem(self.prepare(images))]
        for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def embed_and_feature_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute `embed` and `feature_maps` in one pass, where one encoder serves both losses."""
        maps = self.feature_maps(images)
        return F.normalize(self._resnet().attnpool(maps[-1]), dim=-1), maps

    def _resnet(self) -> ModifiedResNet:
        tower = self.model.visual
        if not isinstance(tower, ModifiedResNet):
            raise UserError(
                f"{self.name} has no feature maps for the identity loss; take a CLIP ResNet such "
                "as RN101 or RN50, or a text-free encoder (timm/NAME), as the identity encoder"
            )
        return tower


class TimmEncoder(FrozenEncoder):
    """A text-free encoder: averages over feature maps of a timm model are its embedding.

    The maps at strides 4 and 8 are the default. On 30 SICE pairs (residual vector from a random
    half, cos(E(x^g), r) for g = 1 ... 0.25 on the others) every step of g raised the score, by 0.46
    in all; with stride 16 added it rose by 0.38 and less evenly, and the network's final embedding
    hardly moved.

    Args:
        name: shown to people and written to files.
        model: a timm model with `forward_intermediates`; frozen and converted to fp32.
        input_size: side of its square input, in pixels.
        mean: of each channel, for inputs in [0, 1].
        std: likewise.
        map_indices: which feature maps to average, counted from 0; None for the default.
        grid: average in grid x grid cells, each with an embedding of its own, so that the
            guidance sees where an image is dark; 1 averages over the whole image.

    Raises:
        UserError: the model has no such feature map.
    """

    needs_calibration = True

    def __init__(
        self,
        name: str,
        model: nn.Module,
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        map_indices: Sequence[int] | None = None,
        grid: int = 1,
    ) -> None:
        super().__init__(name, model, input_size, mean, std)
        strides = [info["reduction"] for info in model.feature_info]
        self.grid = grid
        self.embedded = sorted(_light_maps(strides) if map_indices is None else set(map_indices))
        if not self.embedded or not 0 <= self.embedded[0] <= self.embedded[-1] < len(strides):
            raise UserError(
                f"{name} has the feature maps 0 to {len(strides) - 1}, not {map_indices}"
            )
        self.dim = sum(model.feature_info[index]["num_chs"] for index in self.embedded)
        self.compared = _spread(len(strides), IDENTITY_MAPS)
        self.register_buffer("map_std", torch.ones(len(self.compared)))

    @property
    def embedding_name(self) -> str:
        """What tells the embeddings of one encoder from another's: a name for a file of them."""
        maps = "-".join(map(str, self.embedded))
        return f"{super().embedding_name}-maps-{maps}-grid-{self.grid}"

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, h, w) in [0, 1], of any size, as (N, D), L2-normalised.

        With a grid as (N, grid * grid, D), each cell L2-normalised.
        """
        return self._pool(self._maps(images, self.embedded))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Compute up to five maps, each divided by the standard deviation from `calibrate`."""
        return self._scale(self._maps(images, self.compared))

    def embed_and_feature_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute `embed` and `feature_maps` in one pass, where one encoder serves both losses."""
        wanted = sorted({*self.embedded, *self.compared})
        maps = dict(zip(wanted, self._maps(images, wanted), strict=True))
        embedding = self._pool([maps[index] for index in self.embedded])
        return embedding, self._scale([maps[index] for index in self.compared])

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Measure each map's standard deviation, which makes the maps' squared errors comparable.

        Args:
            images: (N, 3, h, w) in [0, 1], typical ones.
        """
        maps = self._maps(images, self.compared)
        self.map_std.copy_(torch.stack([values.std() for values in maps]))

    def _maps(self, images: Tensor, indices: list[int]) -> list[Tensor]:
        return self.model.forward_intermediates(
            self.prepare(images), indices=indices, stop_early=True, intermediates_only=True
        )

    def _pool(self, maps: list[Tensor]) -> Tensor:
        cells = [
            F.adaptive_avg_pool2d(values, self.grid).flatten(2).transpose(1, 2) for values in maps
        ]  # (N, grid * grid, C) each
        pooled = torch.cat([F.normalize(values, dim=-1) for values in cells], dim=-1)
        pooled = F.normalize(pooled, dim=-1)
        return pooled if self.grid > 1 else pooled[:, 0]

    def _scale(self, maps: list[Tensor]) -> list[Tensor]:
        return [values / std for values, std in zip(maps, self.map_std, strict=True)]


Encoder = CLIPEncoder | TimmEncoder


def _light_maps(strides: Sequence[int]) -> list[int]:
    """The maps at strides 4 and 8; where there are none (transformers), the middle third."""
    chosen = [index for index, stride in enumerate(strides) if stride in LIGHT_STRIDES]
    third = len(strides) // 3
    return chosen or list(range(third, len(strides) - third))


def _spread(count: int, wanted: int) -> list[int]:
    """Choose `wanted` of `count` indices, evenly from the first to the last; all if fewer."""
    if count <= wanted:
        return list(range(count))
    return [round(step * (count - 1) / (wanted - 1)) for step in range(wanted)]
