"""TransMIL against its algorithm, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyhisto.models.mil import build_head
from pyhisto.models.mil.base import MilHead

WIDTH, HEADS, LANDMARKS = 16, 8, 8


@pytest.fixture
def head() -> MilHead:
    torch.manual_seed(1)
    return build_head("transmil", 5, 2, hidden=WIDTH).double().eval()


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax along the rows."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def layer_norm(tokens: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def inverse(matrix: np.ndarray, everywhere: np.ndarray) -> np.ndarray:
    """Six steps towards the pseudo-inverse (Xiong 2021, equation 11), begun as in its code for all heads together."""
    eye = np.eye(len(matrix))
    z = matrix.T / (np.abs(everywhere).sum(-1).max() * np.abs(everywhere).sum(-2).max())
    for _ in range(6):
        az = matrix @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


def attend(tokens: np.ndarray, of: dict[str, np.ndarray], layer: str) -> np.ndarray:
    """One layer on tokens (n, width): zeros in front, landmarks, three softmaxes, and a convolution of the values."""
    normed = layer_norm(tokens, of[f"{layer}.norm.weight"], of[f"{layer}.norm.bias"])
    count, size = len(tokens), WIDTH // HEADS
    normed = np.concatenate([np.zeros((-count % LANDMARKS, WIDTH)), normed])
    q, k, v = np.split(normed @ of[f"{layer}.attention.to_qkv.weight"].T, 3, axis=1)
    of_heads, between = [], []
    for number in range(HEADS):
        part = slice(number * size, (number + 1) * size)
        queries, keys = q[:, part] / np.sqrt(size), k[:, part]
        few_queries = queries.reshape(LANDMARKS, -1, size).mean(1)
        few_keys = keys.reshape(LANDMARKS, -1, size).mean(1)
        between.append(softmax(few_queries @ few_keys.T))
        of_heads.append((softmax(queries @ few_keys.T), softmax(few_queries @ keys.T), v[:, part]))
    results = []
    for number, (left, right, values) in enumerate(of_heads):
        product = left @ inverse(between[number], np.stack(between)) @ (right @ values)
        kernel = of[f"{layer}.attention.res_conv.weight"][number, 0, :, 0]
        padded = np.pad(values, ((16, 16), (0, 0)))
        product += np.stack([kernel @ padded[row : row + 33] for row in range(len(values))])
        results.append(product)
    merged = np.concatenate(results, 1)
    out = merged @ of[f"{layer}.attention.to_out.0.weight"].T + of[f"{layer}.attention.to_out.0.bias"]
    return tokens + out[-count:]


def encode_positions(tokens: np.ndarray, of: dict[str, np.ndarray], side: int) -> np.ndarray:
    """PPEG: the tokens but the first as an image, plus its three depthwise convolutions."""
    image = tokens[1:].reshape(side, side, WIDTH)
    result = image.copy()
    for number, size in enumerate((7, 5, 3)):
        kernel = of[f"position.convolutions.{number}.weight"][:, 0]
        padded = np.pad(image, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
        for row in range(side):
            for column in range(side):
                window = padded[row : row + size, column : column + size]
                result[row, column] += np.einsum("yxc,cyx->c", window, kernel)
        result += of[f"position.convolutions.{number}.bias"]
    return np.concatenate([tokens[:1], result.reshape(-1, WIDTH)])


@pytest.mark.parametrize(("count", "side"), [(1, 1), (2, 2), (5, 3), (16, 4), (17, 5)])
def test_the_algorithm(head: MilHead, count: int, side: int) -> None:
    bag = torch.randn(count, 5, dtype=torch.float64)
    of = {name: value.numpy() for name, value in head.state_dict().items()}

    h = np.maximum(bag.numpy() @ of["first.0.weight"].T + of["first.0.bias"], 0)
    h = np.concatenate([of["class_token"][0], h, h[: side * side - count]])
    h = attend(h, of, "before")
    h = encode_positions(h, of, side)
    last = attend(h, of, "after")
    token = layer_norm(last[0], of["norm.weight"], of["norm.bias"])
    logits = of["classifier.weight"] @ token + of["classifier.bias"]

    np.testing.assert_allclose(head(bag).logits.detach()[0], logits, rtol=1e-9)


def test_attention_is_the_row_of_the_class_token(head: MilHead) -> None:
    """Seven instances fill a square of three with the first two once more."""
    bag = torch.randn(7, 5, dtype=torch.float64)
    of = {name: value.numpy() for name, value in head.state_dict().items()}
    h = np.maximum(bag.numpy() @ of["first.0.weight"].T + of["first.0.bias"], 0)
    h = encode_positions(attend(np.concatenate([of["class_token"][0], h, h[:2]]), of, "before"), of, 3)
    normed = layer_norm(h, of["after.norm.weight"], of["after.norm.bias"])
    q, k, _ = np.split(normed @ of["after.attention.to_qkv.weight"].T, 3, axis=1)
    rows = [softmax(q[0, part] @ k[1:, part].T / np.sqrt(2)) for part in (slice(n, n + 2) for n in range(0, WIDTH, 2))]
    row = np.mean(rows, axis=0)
    expected = row[:7].copy()
    expected[:2] += row[7:]

    np.testing.assert_allclose(head(bag).attention, expected, rtol=1e-9)


def test_order_matters_through_convolutions_and_landmarks_alone(head: MilHead) -> None:
    """Four instances need no repetition, and with the class token and three zeros there are as many as landmarks."""
    bag = torch.randn(4, 5, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    difference = (head(bag).logits - head(bag[order]).logits).abs().max()
    assert difference > 1e-3

    with torch.no_grad():
        for name, weight in head.named_parameters():
            if "convolutions" in name or "res_conv" in name:
                weight.zero_()
    torch.testing.assert_close(head(bag).logits, head(bag[order]).logits, rtol=1e-9, atol=1e-9)


def test_many_instances() -> None:
    head = build_head("transmil", 3, 2, hidden=8).eval()
    with torch.no_grad():
        output = head(torch.randn(20_001, 3))
    assert output.logits.isfinite().all()
    assert output.attention.shape == (20_001,)
    assert output.attention.sum().item() == pytest.approx(1, rel=1e-4)


def test_it_learns(head: MilHead) -> None:
    bags = torch.randn(4, 3, 5, dtype=torch.float64)
    bags[:2, 1, 0] += 5
    labels, offsets = torch.tensor([1, 1, 0, 0]), torch.arange(0, 13, 3)
    optimiser = torch.optim.Adam(head.parameters(), 0.01)
    for _ in range(10):
        optimiser.zero_grad()
        loss = head.loss(head(bags.flatten(0, 1), offsets), labels)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2
