"""Encoders, vocabulary and guidance from names, tags and files; errors here name the flags."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.model import build_model_from_openai_state_dict
from torch import Tensor, nn

from models import vocabulary
from models.encoders import CLIPEncoder, Encoder
from models.latent_learner import LatentPromptLearner
from models.prompt_learner import PromptLearner
from training.timm_weights import TIMM_PREFIX, load_timm
from utils import checkpoint, distributed
from utils.download import HUGGING_FACE, download, hub_cached
from utils.errors import UserError, brief, similar

OPENAI_CACHE = Path("~/.cache/clip")  # where OpenAI's own clip package keeps its files
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def load_encoders(
    guidance: str,
    guidance_weights: str | None,
    identity: str | None,
    identity_weights: str | None,
    device: torch.device | str = "cpu",
    stages: Sequence[int] | None = None,
    grid: int = 1,
) -> tuple[Encoder, Encoder | None]:
    """Load the guidance and the identity encoder, as one object where both are the same.

    Args:
        guidance: a name for `load_encoder`.
        guidance_weights: None for the default ones.
        identity: likewise, or None to load none.
        identity_weights: likewise.
        device: where both compute.
        stages: feature maps of the guidance encoder, as for `load_encoder`.
        grid: cells of the guidance encoder, likewise.

    Raises:
        UserError: as `load_encoder`.
    """
    with distributed.one_first():
        guide = load_encoder(guidance, guidance_weights, device, "--clip_weights", stages, grid)
        if identity is None:
            return guide, None
        if (guidance, guidance_weights) == (identity, identity_weights):
            return guide, guide
        return guide, load_encoder(identity, identity_weights, device, "--identity_weights")


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    flag: str = "--clip_weights",
    stages: Sequence[int] | None = None,
    grid: int = 1,
) -> Encoder:
    """Load a frozen encoder: "timm/NAME" is a text-free one, any other name a CLIP of open_clip.

    Args:
        name: "ViT-B-32" (or "ViT-B/32") and "RN101" in the method; any open_clip model, or a timm
            model such as "timm/tf_efficientnet_lite0".
        weights: a file, or None for the default: OpenAI's for a CLIP, timm's own for a timm model.
            For a CLIP also an open_clip tag, such as "laion2b_s34b_b79k". A file in OpenAI's format
            (TorchScript, or a state dict in half precision) itself says what the architecture is;
            any other must be a state dict of the named model, and the name decides the activation
            ("ViT-B-32-quickgelu" is the one that OpenAI's weights have).
        device: where it computes.
        flag: the option that takes the file, for errors.
        stages: the feature maps that a text-free encoder embeds, counted from 0; None for those at
            strides 4 and 8.
        grid: a text-free encoder embeds grid x grid cells of an image.

    Raises:
        UserError: an unknown name or tag, a file that does not fit, weights that cannot be had or
            are not finite, or `stages` or `grid` for a CLIP.
    """
    if name.startswith(TIMM_PREFIX):
        encoder: Encoder = load_timm(name, weights, flag, stages, grid)
    elif stages is not None or grid != 1:
        raise UserError(f"--guidance_stages and --guidance_grid need timm/NAME, not CLIP's {name}")
    else:
        encoder = _load_clip(name.replace("/", "-"), weights, flag)
    checkpoint.require_finite(encoder.model.state_dict(), weights or encoder.name, flag)
    return encoder.to(device)


def load_vocabulary(encoder: Encoder) -> tuple[list[str], Tensor]:
    """Embed the vocabulary by an encoder's text side, or read it from the user's cache.

    The processes of a run share the work.

    Args:
        encoder: a CLIP.

    Returns:
        V texts and their embeddings (V, D), not normalised, on the CPU.

    Raises:
        UserError: the encoder has no text side, or not one of OpenAI's kind.
    """
    texts = vocabulary.vocabulary_texts()
    key, shape = f"vocabulary-{encoder.fingerprint}", (len(texts), encoder.dim)

    def compute() -> Tensor:
        own = distributed.shard(len(texts))
        part = vocabulary.embed_texts(encoder.model, texts[own.start : own.stop])
        return torch.cat(distributed.gather(part))

    vocabulary.require_text(encoder.model, encoder.name)
    return texts, checkpoint.cached_tensor(key, shape, compute)


def restore_guidance(guidance: PromptLearner | LatentPromptLearner, path: str | Path) -> None:
    """Load a guidance checkpoint, with or without `module.` in its key.

    Raises:
        UserError: it holds the other kind of guidance or anything else, another shape, or prompts
            of another number of words.
    """
    if isinstance(guidance, LatentPromptLearner):
        dim = guidance.guidance_embeddings.shape[1]
        what = f"CLIP-LIT-Latent's two guidance vectors of length {dim}"
        checkpoint.restore(guidance, path, what)
        return
    checkpoint.restore(guidance, path, "CLIP-LIT's prompts for this CLIP")
    words = guidance.count_words()
    if words != guidance.length_prompt:
        raise UserError(
            f"{path} holds prompts of {words} words, not of {guidance.length_prompt}; give "
            f"--length_prompt {words}"
        )


def _load_clip(name: str, weights: str | Path | None, flag: str) -> CLIPEncoder:
    tag = None
    if weights is not None and os.path.isfile(weights):
        path = Path(weights)
        title = f"{name} ({path.name})"
    else:
        tag = "openai" if weights is None else str(weights)
        path = _clip_file(name, tag, flag)
        title = name if tag == "openai" else f"{name} ({tag})"
    model, mean, std = _read_clip(name, path, tag)
    size = model.visual.image_size
    return CLIPEncoder(title, model, size if isinstance(size, int) else size[0], mean, std)


def _clip_file(name: str, tag: str, flag: str) -> Path:
    """Find, or download, the weights that open_clip calls `tag` of the model `name`."""
    _require_clip_name(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = f"its tags are {', '.join(tags)}" if tags else "open_clip has no weights for it"
        raise UserError(
            f"{tag!r} is neither a file nor weights of {name} that open_clip knows ({known}); "
            f"give a file or a tag with {flag}"
        )
    config = open_clip.get_pretrained_cfg(name, tag)
    url, (repository, _, file) = config.get("url", ""), config.get("hf_hub", "").rpartition("/")
    openai_file = OPENAI_CACHE.expanduser() / Path(url).name
    if tag == "openai" and openai_file.is_file():
        return openai_file
    if repository and (cached := hub_cached(repository, (file,) if file else CLIP_FILES)):
        return cached
    if tag == "openai":
        remedy = f"fetch {url} elsewhere and put it at {openai_file}, or name it with {flag}"
    else:
        source = f"{file or CLIP_FILES[0]} of huggingface.co/{repository}" if repository else url
        remedy = f"fetch {source} elsewhere and name the file with {flag}"
    return download(
        lambda: open_clip.download_pretrained(config),
        HUGGING_FACE if repository else url,
        f"the {tag} weights of {name}",
        remedy,
    )


def _read_clip(
    name: str, path: Path, tag: str | None
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """Read a CLIP file.

    Args:
        name: the open_clip model that it is, unless the file is in OpenAI's format.
        path: the file.
        tag: what open_clip calls these weights; None for a user's own file.

    Returns:
        The model, and the mean and standard deviation of its inputs.
    """
    openai_weights = _openai_weights(path, name) if tag in (None, "openai") else None
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
            f"{path} does not hold weights of the CLIP model {name}: {brief(error)}"
        ) from error
    mean = config.get("mean", open_clip.OPENAI_DATASET_MEAN)
    return model, mean, config.get("std", open_clip.OPENAI_DATASET_STD)


def _openai_weights(path: Path, name: str) -> dict[str, Tensor] | None:
    """Read a file of OpenAI's weights: TorchScript, or a state dict in halves; None for others.

    Saved in fp32, their values still are halves. Then the activation is QuickGELU, unlike that of
    open_clip's own model `name`; so they are recognised where OpenAI has published such a model.
    """
    if _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated
            try:
                return torch.jit.load(path, map_location="cpu").state_dict()
            except RuntimeError as error:
                raise UserError(f"{path} is damaged ({brief(error)}); fetch it again") from error
    weights = checkpoint.load(path)
    patches = weights.get("visual.conv1.weight") if isinstance(weights, dict) else None
    if not isinstance(patches, Tensor):
        return None
    openai = "openai" in open_clip.list_pretrained_tags_by_model(name)
    halves = patches.dtype == torch.float32 and torch.equal(patches.half().float(), patches)
    return weights if patches.dtype == torch.float16 or (openai and halves) else None


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError):  # `checkpoint.load` says what it is
        return False


def _openai_clip(weights: dict[str, Tensor], path: Path) -> nn.Module:
    try:
        return build_model_from_openai_state_dict(weights, cast_dtype=torch.float32)
    except Exception as error:  # open_clip trusts in names, types and shapes
        raise UserError(
            f"{path} looks like an OpenAI CLIP file but does not hold a CLIP model; check where it "
            f"comes from ({brief(error)})"
        ) from error


def _require_clip_name(name: str) -> None:
    names = open_clip.list_models()
    if name not in names:
        raise UserError(f"open_clip has no model named {name}{similar(name, names)}")
