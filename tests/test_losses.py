import pytest
import torch
import torch.nn.functional as F

from mrl.losses import MatryoshkaLoss, check_labels, nested_cross_entropy, weighted_sum

N, C, D = 6, 4, 8


def slow_cross_entropy(logits_NC, target_NC):
    """Cross-entropy from its definition, example by example and class by class."""
    total = 0.0
    for logits, target in zip(logits_NC, target_NC, strict=True):
        log_sum = logits.exp().sum().log()
        total = total + sum(p * (log_sum - x) for p, x in zip(target, logits, strict=True))
    return total / len(logits_NC)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_nested_cross_entropy_equals_the_definition(smoothing, soft):
    torch.manual_seed(0)
    logits = {m: torch.randn(N, C, dtype=torch.float64) for m in (2, 8)}
    indices = torch.tensor([0, 1, 2, 3, 3, 0])
    target = F.one_hot(indices, C).double()
    labels = indices
    if soft:
        labels = target = torch.rand(N, C, dtype=torch.float64).softmax(1)
    smoothed = target * (1 - smoothing) + smoothing / C
    losses = nested_cross_entropy(logits, labels, smoothing)
    for m in logits:
        assert torch.allclose(losses[m], slow_cross_entropy(logits[m], smoothed))


def test_half_precision_logits_give_a_float32_loss():
    losses = nested_cross_entropy({2: torch.randn(N, C).bfloat16()}, torch.zeros(N).long())
    assert losses[2].dtype == torch.float32


def test_the_total_is_a_sum_not_a_mean():
    losses = {2: torch.tensor(1.0), 4: torch.tensor(10.0)}
    assert weighted_sum(losses, [1.0, 1.0]) == 11
    assert weighted_sum(losses, [3.0, 0.5]) == 8
    with pytest.raises(ValueError, match="all loss weights are zero"):
        weighted_sum(losses, [0.0, 0.0])


@pytest.mark.parametrize("bad", [-1, 4, 2048])
def test_labels_outside_the_classes_are_named(bad):
    labels = torch.tensor([0, 3, bad])
    with pytest.raises(ValueError, match=rf"label {bad} at index 2 is outside 0\.\.3"):
        check_labels(labels, 4)
    check_labels(labels[:2], 4)


def test_soft_labels_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(2, 3\)"):
        check_labels(torch.rand(2, 3), 4)


def contrastive(a, b, temperature=0.1):
    return F.cross_entropy(a @ b.T / temperature, torch.arange(len(a)))


@pytest.mark.parametrize("normalize", [True, False])
def test_matryoshka_loss_equals_a_plain_loop(normalize):
    torch.manual_seed(0)
    a, b = torch.randn(N, D, requires_grad=True), torch.randn(N, D, requires_grad=True)
    loss = MatryoshkaLoss(contrastive, [2, 8], weights=[2, 1], normalize=normalize)
    total, losses = loss(a, b, temperature=0.5)
    expected = {}
    for m in (2, 8):
        cut = [F.normalize(z[:, :m], dim=1) if normalize else z[:, :m] for z in (a, b)]
        expected[m] = contrastive(*cut, temperature=0.5)
        assert torch.allclose(losses[m], expected[m])
    expected_total = 2 * expected[2] + expected[8]
    assert torch.allclose(total, expected_total)
    for grad, other in zip(
        torch.autograd.grad(total, [a, b]), torch.autograd.grad(expected_total, [a, b]), strict=True
    ):
        assert torch.allclose(grad, other, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e-4, 1.0, 1e4])
def test_matryoshka_loss_with_a_dead_prefix_is_finite(dtype, scale):
    torch.manual_seed(0)
    pair = [torch.randn(N, D).relu() for _ in "ab"]
    for z in pair:
        z[:, :2] *= scale
        z[0], z[1] = 0.0, 6e-8
    a, b = (z.to(dtype).requires_grad_() for z in pair)
    total, losses = MatryoshkaLoss(contrastive, [2, D])(a, b)
    total.backward()
    wide = [z.detach().double() for z in (a, b)]
    wanted, _ = MatryoshkaLoss(contrastive, [2, D])(*wide)
    torch.testing.assert_close(total.detach().double(), wanted, rtol=0.1, atol=0)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matryoshka_loss_with_a_dead_prefix_is_finite_under_autocast(dtype):
    torch.manual_seed(0)
    encoder = torch.nn.Linear(5, D)
    with torch.no_grad():
        encoder.weight[:2] = encoder.bias[:2] = 0.0
    with torch.autocast("cpu", dtype):
        a, b = encoder(torch.randn(N, 5)), encoder(torch.randn(N, 5))
        assert a.dtype == dtype
        total, _ = MatryoshkaLoss(contrastive, [2, D])(a, b)
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(encoder.weight.grad).all()


def test_matryoshka_loss_recovers_after_an_exception():
    def fails_once(z, broken=False):
        if broken:
            raise RuntimeError("loss_fn failed")
        assert z.shape[1] in (2, 8)
        return z.sum()

    loss = MatryoshkaLoss(fails_once, [2, 8], normalize=False)
    z = torch.ones(N, D)
    with pytest.raises(RuntimeError, match="loss_fn failed"):
        loss(z, broken=True)
    assert loss(z)[0] == N * (2 + 8)
    assert z.shape == (N, D)


@pytest.mark.parametrize("widths", [[], [4, 2], [2, 2], [0, 2]])
def test_matryoshka_loss_refuses_bad_granularities(widths):
    with pytest.raises(ValueError, match="granularities"):
        MatryoshkaLoss(contrastive, widths)


def test_matryoshka_loss_refuses_short_embeddings_and_none():
    loss = MatryoshkaLoss(lambda z: z.sum(), [2, 16])
    with pytest.raises(ValueError, match="got 16"):
        loss(torch.ones(N, D))
    with pytest.raises(ValueError, match="at least one"):
        loss()
