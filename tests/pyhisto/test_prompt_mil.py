"""Prompt-MIL: a frozen vision transformer against its formulas in numpy, and what learns."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pyhisto.errors import ConfigError
from pyhisto.features.encoders import EncoderOptions, load_encoder
from pyhisto.models.mil import build_head
from pyhisto.models.mil.settings import HeadSettings, PromptSettings
from pyhisto.models.prompt import PromptedTransformer

WIDTH, HEADS, LAYERS, TILE, PATCH = 8, 2, 2, 8, 4
TINY = {"tile_px": TILE, "patch_px": PATCH, "width": WIDTH, "heads": HEADS, "layers": LAYERS, "length": 2}
State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    """A vision transformer's weights under timm's names."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + (TILE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "head.weight": (1000, WIDTH),
    }
    for number in range(LAYERS):
        shapes |= {
            f"blocks.{number}.{name}": shape
            for name, shape in {
                "norm1.weight": (WIDTH,),
                "norm1.bias": (WIDTH,),
                "attn.qkv.weight": (3 * WIDTH, WIDTH),
                "attn.qkv.bias": (3 * WIDTH,),
                "attn.proj.weight": (WIDTH, WIDTH),
                "attn.proj.bias": (WIDTH,),
                "norm2.weight": (WIDTH,),
                "norm2.bias": (WIDTH,),
                "mlp.fc1.weight": (4 * WIDTH, WIDTH),
                "mlp.fc1.bias": (4 * WIDTH,),
                "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
                "mlp.fc2.bias": (WIDTH,),
            }.items()
        }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def save(state: object, folder: Path) -> str:
    torch.save(state, folder / "vit.pt")
    return str(folder / "vit.pt")


def layer_norm(tokens: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + shift


def block(tokens: np.ndarray, of: dict[str, np.ndarray]) -> np.ndarray:
    """One block of a vision transformer (Dosovitskiy et al. 2021, equations 2 and 3) on tokens (n, width)."""
    normed = layer_norm(tokens, of["norm1.weight"], of["norm1.bias"])
    q, k, v = np.split(normed @ of["attn.qkv.weight"].T + of["attn.qkv.bias"], 3, axis=1)
    mixed = []
    for start in range(0, WIDTH, WIDTH // HEADS):
        part = slice(start, start + WIDTH // HEADS)
        powers = np.exp(q[:, part] @ k[:, part].T / math.sqrt(WIDTH // HEADS))
        mixed.append(powers / powers.sum(1, keepdims=True) @ v[:, part])
    tokens = tokens + np.concatenate(mixed, 1) @ of["attn.proj.weight"].T + of["attn.proj.bias"]
    wide = layer_norm(tokens, of["norm2.weight"], of["norm2.bias"]) @ of["mlp.fc1.weight"].T + of["mlp.fc1.bias"]
    wide = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
    return tokens + wide @ of["mlp.fc2.weight"].T + of["mlp.fc2.bias"]


def features(tile: np.ndarray, prompt: np.ndarray, state: State) -> np.ndarray:
    """The class token of a tile (3, side, side), 0 to 255, after all blocks, with the prompt behind the class token."""
    of = {name: value.double().numpy() for name, value in state.items()}
    colours = (tile / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    patches = [
        (of["patch_embed.proj.weight"] * colours[:, y : y + PATCH, x : x + PATCH]).sum((1, 2, 3))
        + of["patch_embed.proj.bias"]
        for y in range(0, TILE, PATCH)
        for x in range(0, TILE, PATCH)
    ]
    positions = of["pos_embed"][0]
    tokens = np.concatenate([of["cls_token"][0] + positions[:1], prompt, np.array(patches) + positions[1:]])
    for number in range(LAYERS):
        prefix = f"blocks.{number}."
        tokens = block(tokens, {k.removeprefix(prefix): v for k, v in of.items() if k.startswith(prefix)})
    return layer_norm(tokens[0], of["norm.weight"], of["norm.bias"])


@pytest.mark.parametrize("naming", ["timm", "dino", "monai"])
def test_the_transformer_with_a_prompt(state: State, tmp_path: Path, naming: str) -> None:
    given: object = state
    if naming == "dino":
        given = {"teacher": {f"module.backbone.{name}": value for name, value in state.items()}, "epoch": 100}
    encoder = PromptedTransformer(PromptSettings(weights=save(given, tmp_path), at_once=2, **TINY))
    if naming == "monai":
        path = save(encoder.transformer.state_dict(), tmp_path)
        encoder = PromptedTransformer(PromptSettings(weights=path, at_once=2, **TINY))
    encoder = encoder.double()
    tiles = torch.randint(0, 256, (3, 3, TILE, TILE), dtype=torch.uint8)
    prompt = encoder.prompt.detach()[0].numpy()

    expected = [features(tile.numpy(), prompt, state) for tile in tiles]

    np.testing.assert_allclose(encoder(tiles).detach(), expected, rtol=1e-6, atol=1e-6)


def test_only_the_prompt_and_the_head_learn(state: State, tmp_path: Path) -> None:
    weights = save(state, tmp_path)
    head = build_head("prompt-mil", 3 * TILE * TILE, 2, prompt={**TINY, "weights": weights, "at_once": 3})
    before = {name: value.clone() for name, value in head.state_dict().items()}
    tiles = torch.randint(0, 256, (5, 3, TILE, TILE), dtype=torch.uint8)
    optimiser = torch.optim.AdamW(head.parameters(), 0.01)

    head.loss(head(tiles, torch.tensor([0, 2, 5])), torch.tensor([0, 1])).backward()
    optimiser.step()

    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if not name.startswith("encoder.transformer")} == changed
    assert "encoder.prompt" in changed


def test_the_gradient_of_the_prompt_is_that_of_its_numbers(state: State, tmp_path: Path) -> None:
    """Activations are made again for the gradient, in chunks; it must be the slope all the same."""
    head = build_head(
        "prompt-mil", 3 * TILE * TILE, 2, prompt={**TINY, "weights": save(state, tmp_path), "at_once": 2}
    ).double()
    tiles = torch.randint(0, 256, (5, 3, TILE, TILE), dtype=torch.uint8)
    labels = torch.tensor([1])
    head.loss(head(tiles), labels).backward()
    prompt = head.encoder.prompt
    with torch.no_grad():
        losses = []
        for step in (1e-5, -2e-5):
            prompt[0, 1, 3] += step
            losses.append(head.loss(head(tiles), labels).item())

    assert prompt.grad is not None
    assert prompt.grad[0, 1, 3].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4)


def test_a_head_is_built_again_without_the_file_of_weights(state: State, tmp_path: Path) -> None:
    settings = HeadSettings(prompt=PromptSettings(**TINY, weights=save(state, tmp_path)))
    head = build_head("prompt-mil", 3 * TILE * TILE, 2, **vars(settings))
    tiles = torch.randint(0, 256, (5, 3, TILE, TILE), dtype=torch.uint8)
    (tmp_path / "vit.pt").unlink()

    again = build_head("prompt-mil", 3 * TILE * TILE, 2, **dataclasses.asdict(settings.without_files()))
    again.load_state_dict(head.state_dict())

    assert torch.equal(again(tiles).logits, head(tiles).logits)
    assert HeadSettings().without_files() == HeadSettings()


@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_features_that_are_pixels_are_tiles(stored: type) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, TILE, TILE, 3), dtype=np.uint8)
    head = build_head("prompt-mil", 3 * TILE * TILE, 2, prompt={**TINY, "weights": "random"})

    features = load_encoder("pixels", EncoderOptions(tile_size=TILE)).encode(rgb).astype(stored)

    assert np.array_equal(np.rint(features.reshape(3, 3, TILE, TILE)), rgb.transpose(0, 3, 1, 2))
    with torch.no_grad():
        from_file, from_tiles = head(torch.from_numpy(features)), head(torch.from_numpy(rgb).permute(0, 3, 1, 2))
    torch.testing.assert_close(from_file.logits, from_tiles.logits, rtol=1e-4, atol=1e-5)


def test_the_settings_of_the_inner_head_reach_it() -> None:
    head = build_head(
        "prompt-mil", 3 * TILE * TILE, 2, clustered=3, prompt={**TINY, "weights": "random", "head": "clam-mb"}
    )
    assert head.head.settings.clustered == 3
    assert head(torch.zeros(4, 3, TILE, TILE)).attention.shape == (4, 2)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "without weights of its transformer"),
        ({"weights": "random", "head": "prompt-mil"}, "with itself as the head"),
        ({"weights": "random", "head": "median"}, "unknown head 'median'"),
        ({"weights": "random", "heads": 3}, "prompt width is 8; expected a multiple of heads, 3"),
        ({"weights": "random", "length": 0}, "prompt length is 0"),
        ({"weights": "random", "tile_px": 16}, "768, the pixels of tiles of 16 px; give it the tiles themselves"),
        ({"weights": "absent.pt"}, "weights absent.pt cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(prompt: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_head("prompt-mil", 3 * TILE * TILE, 2, prompt={**TINY, **prompt})


def test_weights_of_another_transformer_are_refused(state: State, tmp_path: Path) -> None:
    weights = save(state, tmp_path)
    with pytest.raises(ConfigError, match=r"\(1, 4, 8\) as patch_embedding.position_embeddings; expected \(1, 16, 8\)"):
        build_head("prompt-mil", 3 * 16 * 16, 2, prompt={**TINY, "tile_px": 16, "weights": weights})
    with pytest.raises(ConfigError, match="have nothing as"):
        build_head("prompt-mil", 3 * TILE * TILE, 2, prompt={**TINY, "layers": 3, "weights": weights})


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        build_head("prompt-mil", 3 * TILE * TILE, 2, prompt={**TINY, "weights": str(tmp_path / "text.pt")})
    with pytest.raises(ConfigError, match="have nothing as"):
        build_head("prompt-mil", 3 * TILE * TILE, 2, prompt={**TINY, "weights": save([1, 2], tmp_path)})
