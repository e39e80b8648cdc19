"""Multiple-instance heads against the formulas of their papers, written out in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.networks.nets import MILModel

from pyhisto.errors import ConfigError
from pyhisto.models.mil import HEADS, build_head
from pyhisto.models.mil.base import MilHead

FEATURES, CLASSES = 6, 3
OFFSETS = torch.tensor([0, 1, 4, 9, 21])
LABELS = torch.tensor([2, 0, 1, 1])
TINY_PROMPT = {"weights": "random", "tile_px": 8, "patch_px": 4, "width": 8, "heads": 2, "layers": 2}
OPTIONS: dict[str, dict[str, object]] = {
    "abmil": {"hidden": 5},
    "attention": {"hidden": 5},
    "dsmil": {"hidden": 5},
    "clam-sb": {"hidden": 5, "attention": 4, "clustered": 2, "exclusive": True},
    "clam-mb": {"hidden": 5, "attention": 4, "clustered": 2},
    "prompt-mil": {"prompt": TINY_PROMPT},
    "transmil": {"hidden": 16},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(name: str, **options: object) -> MilHead:
    features = 3 * 8 * 8 if name == "prompt-mil" else FEATURES
    return build_head(name, features, CLASSES, **{**OPTIONS.get(name, {}), **options}).double().eval()


def instances(head: MilHead, count: int = 21) -> torch.Tensor:
    return torch.randn(count, head.in_features, dtype=torch.float64)


def weights(head: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in head.state_dict().items()}


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax down the columns."""
    return np.exp(scores) / np.exp(scores).sum(0)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def close(tensor: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(tensor.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_max_is_the_highest_logit_of_each_class() -> None:
    head = make("max")
    with torch.no_grad():
        head.layers.myfc.weight.copy_(torch.eye(3, FEATURES))
        head.layers.myfc.bias.copy_(torch.tensor([0.0, 10.0, 0.0]))
    bag = torch.zeros(4, FEATURES, dtype=torch.float64)
    bag[:, :3] = torch.tensor([[1.0, 0.0, 5.0], [3.0, 2.0, 5.0], [2.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])

    output = head(bag)

    assert output.logits.tolist() == [[3.0, 12.0, 5.0]]
    assert output.attention.tolist() == [[0, 0, 0.5], [1, 1, 0.5], [0, 0, 0], [0, 0, 0]]
    assert output.instance is not None
    assert output.instance[3].tolist() == [-1.0, 11.0, 0.0]


def test_mean_is_the_mean_logit() -> None:
    head = make("mean")
    bag = instances(head, 5)
    of = weights(head)

    output = head(bag)

    close(output.logits, (bag.numpy() @ of["layers.myfc.weight"].T + of["layers.myfc.bias"]).mean(0)[None])
    close(output.attention, np.full(5, 0.2))


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize(("name", "mode"), [("max", "max"), ("mean", "mean"), ("attention", "att")])
def test_the_heads_of_monai_say_what_monai_says(name: str, mode: str, hidden: int) -> None:
    head = make(name, hidden=hidden)
    first = torch.nn.Sequential(torch.nn.Linear(FEATURES, 4), torch.nn.ReLU()) if hidden else torch.nn.Identity()
    monai = MILModel(
        CLASSES,
        mil_mode=mode,
        pretrained=False,
        backbone=torch.nn.Sequential(torch.nn.Flatten(), first),
        backbone_num_features=hidden or FEATURES,
    ).double()
    monai.load_state_dict(head.layers.state_dict())
    bags = instances(head)

    logits = head(bags, OFFSETS).logits

    for bag, mine in zip(torch.split(bags, OFFSETS.diff().tolist()), logits, strict=True):
        close(mine[None], monai(bag[None, :, :, None, None]).detach().numpy())


def test_attention_without_a_gate() -> None:
    head = make("attention", hidden=0)
    bag = instances(head, 5)
    h, of = bag.numpy(), weights(head)

    a = softmax(
        np.tanh(h @ of["layers.attention.0.weight"].T + of["layers.attention.0.bias"])
        @ of["layers.attention.2.weight"].T
    )

    close(head(bag).attention, a[:, 0])


@pytest.mark.parametrize("hidden", [0, 4])
def test_gated_attention(hidden: int) -> None:
    head = make("abmil", hidden=hidden, attention=5)
    bag = instances(head, 7)
    h, of = bag.numpy(), weights(head)
    if hidden:
        h = np.maximum(h @ of["first.0.weight"].T + of["first.0.bias"], 0)

    value = np.tanh(h @ of["value.weight"].T + of["value.bias"])
    gate = sigmoid(h @ of["gate.weight"].T + of["gate.bias"])
    a = softmax((value * gate) @ of["weight.weight"][0])
    z = a @ h
    output = head(bag)

    close(output.attention, a)
    close(output.logits, (of["classifier.weight"] @ z + of["classifier.bias"])[None])
    assert output.instance is not None
    close(output.instance, h @ of["classifier.weight"].T + of["classifier.bias"])


@pytest.mark.parametrize(("name", "branches"), [("clam-sb", 1), ("clam-mb", CLASSES)])
def test_clam(name: str, branches: int) -> None:
    head = make(name)
    bag = instances(head, 9)
    of = weights(head)

    h = np.maximum(bag.numpy() @ of["first.0.weight"].T + of["first.0.bias"], 0)
    value = np.tanh(h @ of["value.0.weight"].T + of["value.0.bias"])
    gate = sigmoid(h @ of["gate.0.weight"].T + of["gate.0.bias"])
    a = softmax((value * gate) @ of["weight.weight"].T + of["weight.bias"])
    logits = [
        of["classifier.weight"][m] @ (a[:, min(m, branches - 1)] @ h) + of["classifier.bias"][m] for m in range(CLASSES)
    ]
    clusters = h @ of["instance_classifier.weight"].T + of["instance_classifier.bias"]
    output = head(bag)

    close(output.attention, a[:, 0] if branches == 1 else a)
    close(output.logits, np.array([logits]))
    assert output.instance is not None
    close(output.instance, clusters[:, 1::2] - clusters[:, ::2])


@pytest.mark.parametrize("name", ["clam-sb", "clam-mb"])
@pytest.mark.parametrize("exclusive", [False, True])
def test_the_loss_of_clam(name: str, exclusive: bool) -> None:
    """Two bags, of 9 and of 3 instances; two high and two low are clustered, in the small bag one and one."""
    head = make(name, exclusive=exclusive, bag_weight=0.6)
    bags, labels, class_weights = instances(head, 12), [2, 0], np.array([1.0, 2.0, 5.0])
    of = weights(head)
    output = head(bags, torch.tensor([0, 9, 12]))
    attention = output.attention.detach().numpy()
    attention = np.stack([attention] * CLASSES, 1) if attention.ndim == 1 else attention
    h = np.maximum(bags.numpy() @ of["first.0.weight"].T + of["first.0.bias"], 0)
    p = (h @ of["instance_classifier.weight"].T + of["instance_classifier.bias"]).reshape(12, CLASSES, 2)

    def svm(row: np.ndarray, truth: int) -> float:
        return float(np.log(1 + np.exp(1 + row[1 - truth] - row[truth])))

    clustering, bag_loss = [], []
    for start, end, few, label in ((0, 9, 2, 2), (9, 12, 1, 0)):
        branches = []
        for m in range(CLASSES):
            order = start + np.argsort(attention[start:end, m])
            if m == label:
                losses = [svm(p[k, m], 1) for k in order[-few:]] + [svm(p[k, m], 0) for k in order[:few]]
            elif exclusive:
                losses = [svm(p[k, m], 0) for k in order[-few:]]
            else:
                continue
            branches.append(np.mean(losses))
        clustering.append(np.mean(branches))
    for logits, label in zip(output.logits.detach().numpy(), labels, strict=True):
        bag_loss.append(-logits[label] + np.log(np.exp(logits).sum()))
    counts = class_weights[labels]
    expected = 0.6 * np.average(bag_loss, weights=counts) + 0.4 * np.average(clustering, weights=counts)

    loss = head.loss(output, torch.tensor(labels), torch.from_numpy(class_weights))

    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_a_bag_of_one_has_no_clustering_loss() -> None:
    head = make("clam-sb", bag_weight=0.0)
    assert head.loss(head(instances(head, 1)), torch.tensor([1])).item() == 0


def test_dsmil() -> None:
    head = make("dsmil", hidden=0, attention=4)
    bag = instances(head, 8)
    h, of = bag.numpy(), weights(head)

    s = h @ of["scores.weight"].T + of["scores.bias"]
    q = h @ of["query.weight"].T + of["query.bias"]
    v = h @ of["value.weight"].T + of["value.bias"]
    u = np.stack([softmax(q @ q[s[:, c].argmax()] / 2) for c in range(CLASSES)], 1)  # the root of 4
    sums = u.T @ v  # one row of 6 for each class
    second = of["classifier.weight"] @ sums.reshape(-1) + of["classifier.bias"]
    output = head(bag)

    close(output.attention, u)
    close(output.logits, (s.max(0) + second)[None] / 2)
    assert output.instance is not None
    close(output.instance, s)
    entropies = [-logits[1] + np.log(np.exp(logits).sum()) for logits in (s.max(0), second)]
    assert head.loss(output, torch.tensor([1])).item() == pytest.approx(np.mean(entropies), rel=1e-10)


def test_the_cross_entropy_is_weighted_by_class() -> None:
    head = make("mean")
    output = head(instances(head), OFFSETS)
    logits = output.logits.detach().numpy()
    each = [-row[label] + np.log(np.exp(row).sum()) for row, label in zip(logits, LABELS.tolist(), strict=True)]

    loss = head.loss(output, LABELS, torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))

    assert loss.item() == pytest.approx(np.average(each, weights=[4, 1, 2, 2]), rel=1e-10)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_bags_laid_end_to_end_are_judged_as_if_alone(name: str) -> None:
    head = make(name)
    bags = instances(head)

    together = head(bags, OFFSETS)

    assert together.logits.shape == (4, CLASSES)
    starts = OFFSETS.tolist()
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        alone = head(bags[start:end])
        close(together.logits[number : number + 1], alone.logits.detach().numpy())
        close(together.attention[start:end], alone.attention.detach().numpy())
        if alone.instance is not None:
            assert together.instance is not None
            close(together.instance[start:end], alone.instance.detach().numpy())


@pytest.mark.parametrize("name", sorted(HEADS))
def test_attention_sums_to_one_in_every_bag(name: str) -> None:
    head = make(name)
    attention = head(20 * instances(head), OFFSETS).attention.detach()

    assert (attention >= 0).all()
    for bag in torch.split(attention, OFFSETS.diff().tolist()):
        np.testing.assert_allclose(bag.sum(0), 1, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_gradients_are_finite_and_reach_every_weight_that_learns(name: str) -> None:
    head = make(name)

    head.loss(head(100 * instances(head), OFFSETS), LABELS).backward()

    for weight_name, weight in head.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, weight_name
            assert weight.grad.isfinite().all(), weight_name


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"transmil"}))
def test_the_order_of_instances_does_not_matter(name: str) -> None:
    head = make(name)
    bag = instances(head, 11)
    order = torch.randperm(11)

    straight, shuffled = head(bag), head(bag[order])

    close(shuffled.logits, straight.logits.detach().numpy())
    close(shuffled.attention, straight.attention[order].detach().numpy())


@pytest.mark.parametrize("name", ["abmil", "clam-mb", "dsmil", "max"])
def test_equal_instances_share_attention_equally(name: str) -> None:
    head = make(name)
    attention = head(instances(head, 1).expand(8, -1)).attention
    np.testing.assert_allclose(attention.detach(), 1 / 8, rtol=1e-12)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3], "for 4 instances"),
        ([1, 4], "offsets from 1 to 4"),
        ([0, 2, 2, 4], "smallest bag of 0"),
        ([0, 3, 2, 4], "smallest bag of -1"),
        ([0], "shape"),
        ([0.0, 4.0], "float32"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], message: str) -> None:
    head = make("mean")
    with pytest.raises(ConfigError, match=message):
        head(instances(head, 4), torch.tensor(offsets))


def test_an_empty_bag_is_refused() -> None:
    head = make("abmil")
    with pytest.raises(ConfigError, match="smallest bag of 0"):
        head(instances(head, 0))


def test_instances_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(4, 5\); expected \(instances, 6\)"):
        make("abmil")(torch.zeros(4, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("median", {}, "unknown head 'median'"),
        ("abmil", {"atention": 3}, "unknown key 'atention'"),
        ("abmil", {"dropout": 1.0}, "dropout is 1.0"),
        ("max", {"attention": 8}, "'max' has no setting 'attention'; expected one of hidden, dropout"),
        ("abmil", {"hidden": -1}, "hidden is -1"),
        ("abmil", {"clustered": 4}, "'abmil' has no setting 'clustered'"),
        ("transmil", {"hidden": 12}, "hidden is 12; expected a multiple of 8"),
        ("transmil", {"hidden": 0}, "hidden is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_head(name, FEATURES, CLASSES, **options)


def test_one_class_is_no_choice() -> None:
    with pytest.raises(ConfigError, match="two classes"):
        build_head("abmil", FEATURES, 1)


def test_dropout_acts_in_training_alone() -> None:
    head = make("clam-sb", hidden=64, dropout=0.5)
    bag = instances(head, 5)
    assert torch.equal(head(bag).logits, head(bag).logits)
    head.train()
    assert not torch.equal(head(bag).logits, head(bag).logits)


@pytest.mark.parametrize("name", ["max", "mean", "abmil", "clam-sb", "clam-mb", "dsmil"])
def test_a_bag_of_a_hundred_thousand(name: str) -> None:
    head = build_head(name, 4, 2, hidden=4).eval()
    with torch.no_grad():
        output = head(torch.randn(100_000, 4))
    assert output.logits.isfinite().all()
    np.testing.assert_allclose(output.attention.sum(0), 1, rtol=1e-4)


@pytest.mark.parametrize("name", ["attention", "abmil", "clam-sb", "clam-mb", "dsmil"])
def test_a_head_learns_which_instance_decides(name: str) -> None:
    """A bag is positive if one of its six instances has a high first feature."""
    bags = torch.randn(24, 6, FEATURES) / 2
    labels = torch.arange(24) % 2
    bags[labels == 1, 4, 0] += 5
    offsets = torch.arange(0, 145, 6)
    head = build_head(name, FEATURES, 2, hidden=128)
    optimiser = torch.optim.Adam(head.parameters(), 0.003)
    for _ in range(40):
        optimiser.zero_grad()
        head.loss(head(bags.flatten(0, 1), offsets), labels).backward()
        optimiser.step()

    output = head.eval()(bags.flatten(0, 1), offsets)

    assert torch.equal(output.logits.argmax(1), labels)
    attention = output.attention if output.attention.ndim == 1 else output.attention[:, 1]
    assert (attention.view(24, 6)[labels == 1].argmax(1) == 4).float().mean() >= 0.9
