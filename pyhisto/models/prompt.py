"""Prompt-MIL (Zhang et al. 2023, "Prompt-MIL: Boosting Multi-Instance Learning Schemes via Task-specific Prompt ...").

The feature model learns too, but only through a few tokens that are put beside those of each tile.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path

import torch
from monai.networks.nets import ViT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyhisto.errors import ConfigError
from pyhisto.models.mil import build_head
from pyhisto.models.mil.base import MilHead, MilOutput
from pyhisto.models.mil.segments import Bags
from pyhisto.models.mil.settings import HeadSettings, PromptSettings

__all__ = ["PromptMilHead", "PromptedTransformer", "build_prompt_mil"]

_MONAI_NAMES = (
    (r"^(module|backbone)\.", ""),
    (r"^patch_embed\.proj\.", "patch_embedding.patch_embeddings."),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc", ".mlp.linear"),
)
"""From the names of timm and DINO to those of MONAI, as patterns; applied one after another, the first one twice."""


class PromptedTransformer(nn.Module):
    """A frozen vision transformer (MONAI's ``ViT``) with a prompt that learns.

    With E the patch tokens of a tile (with their positions), c the class token and P the prompt, the paper's
    f = L_K(... L_1([c, P, E])) after the last norm, at the class token. Only P has gradients.

    Parameters
    ----------
    settings
        Sizes, and which weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: PromptSettings) -> None:
        super().__init__()
        self.settings = settings
        self.transformer = ViT(
            in_channels=3,
            img_size=settings.tile_px,
            patch_size=settings.patch_px,
            hidden_size=settings.width,
            mlp_dim=4 * settings.width,
            num_layers=settings.layers,
            num_heads=settings.heads,
            spatial_dims=2,
            qkv_bias=True,
        )
        for module in self.transformer.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        for block in self.transformer.blocks:
            block.attn.use_flash_attention = True
            del block.norm_cross_attn  # MONAI makes it always, and uses it only across two sequences
        self.transformer.cls_token = nn.Parameter(torch.randn(1, 1, settings.width) * 0.02)
        if settings.weights != "random":
            _load(self.transformer, settings.weights)
        self.transformer.requires_grad_(False)
        bound = math.sqrt(6 / (3 * settings.patch_px**2 + settings.width))
        self.prompt = nn.Parameter(torch.empty(1, settings.length, settings.width).uniform_(-bound, bound))
        self.register_buffer("mean", 255 * torch.tensor(settings.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(settings.std).view(3, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Map tiles (n, 3, tile_px, tile_px), RGB from 0 to 255, to features (n, width)."""
        return torch.cat([self._features(some) for some in torch.split(tiles, self.settings.at_once)])

    def _features(self, tiles: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # activations of the blocks are made again for the gradient, not kept
            features: Tensor = checkpoint(self._forward_some, tiles, use_reentrant=False)
            return features
        return self._forward_some(tiles)

    def _forward_some(self, tiles: Tensor) -> Tensor:
        layers = self.transformer
        patches = layers.patch_embedding((tiles.to(self.prompt.dtype) - self.mean) / self.std)
        beside = torch.cat([layers.cls_token, self.prompt], dim=1).expand(len(tiles), -1, -1)
        tokens = torch.cat([beside, patches], dim=1)
        for block in layers.blocks:
            tokens = block(tokens)
        features: Tensor = layers.norm(tokens[:, 0])
        return features


class PromptMilHead(MilHead):
    """A prompted transformer over the tiles, and any other head over its features.

    Instances are the pixels of the tiles: (N, 3 * tile_px * tile_px), channels first, RGB from 0 to 255, or
    (N, 3, tile_px, tile_px); features made beforehand do not do, since the prompt changes them. Output and loss are
    those of the inner head. Only the prompt and the inner head have gradients; ``state_dict`` holds the transformer
    as well.
    """

    def __init__(self, in_features: int, classes: int, settings: PromptSettings, head: MilHead) -> None:
        super().__init__(in_features, classes)
        expected = 3 * settings.tile_px**2
        if in_features != expected:
            raise ConfigError(
                f"prompt-mil for instances of {in_features} numbers",
                expected=f"{expected}, the pixels of tiles of {settings.tile_px} px",
                remedy="give it the tiles themselves, or choose another head for features",
            )
        self.encoder = PromptedTransformer(settings)
        self.head = head

    def forward(self, instances: Tensor, offsets: Tensor | None = None) -> MilOutput:
        """Judge one bag of tiles, or several laid end to end; see :meth:`MilHead.forward`."""
        return super().forward(instances.flatten(1), offsets)

    def judge(self, instances: Tensor, bags: Bags) -> MilOutput:
        """Judge checked bags."""
        side = self.encoder.settings.tile_px
        return self.head.judge(self.encoder(instances.view(-1, 3, side, side)), bags)

    def loss(self, output: MilOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the loss of the inner head; see there."""
        return self.head.loss(output, labels, class_weights)


def build_prompt_mil(in_features: int, classes: int, settings: HeadSettings) -> PromptMilHead:
    """Build :class:`PromptMilHead`; all settings but `prompt` are for the inner head.

    Raises
    ------
    ConfigError
        If no weights are given, the file does not hold those of such a transformer, or the inner head cannot be.
    """
    prompt = settings.prompt
    if not prompt.weights:
        raise ConfigError(
            "prompt-mil without weights of its transformer",
            expected="prompt.weights with a file",
            remedy="or 'random' to try it without any",
        )
    if prompt.head == "prompt-mil":
        raise ConfigError("prompt-mil with itself as the head", expected="a head for features, such as abmil")
    options = {name: value for name, value in vars(settings).items() if name != "prompt"}
    return PromptMilHead(in_features, classes, prompt, build_head(prompt.head, prompt.width, classes, **options))


def _load(transformer: nn.Module, path: str) -> None:
    """Read the weights of a vision transformer, under timm's, DINO's or MONAI's names; heads are left out."""
    try:
        state = torch.load(Path(path), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"weights {path} cannot be read: {error}", expected="a file of torch.save") from error
    for key in ("teacher", "state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else {}
    weights = {_monai_name(name): value for name, value in state.items()}
    if "pos_embed" in weights:  # the class token's position first; MONAI's class token has none
        positions = weights.pop("pos_embed")
        weights["cls_token"] = weights["cls_token"] + positions[:, :1]
        weights["patch_embedding.position_embeddings"] = positions[:, 1:]
    wanted = transformer.state_dict()
    for name, parameter in wanted.items():
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found != tuple(parameter.shape):
            raise ConfigError(
                f"weights {path} have {found} as {name}",
                expected=f"{tuple(parameter.shape)}",
                remedy="check the sizes in the settings of the prompt",
            )
    transformer.load_state_dict({name: weights[name] for name in wanted})


def _monai_name(name: str) -> str:
    for pattern, replacement in (_MONAI_NAMES[0], *_MONAI_NAMES):
        name = re.sub(pattern, replacement, name)
    return name
