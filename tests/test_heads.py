import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl.heads import NestedHead, TiedHead, build_head, method_name

N, C, D = 5, 3, 16


def slow_logits(head, z_ND):
    """Plain slices and products, one granularity at a time."""
    logits = {}
    for m in head.granularities:
        if isinstance(head, TiedHead):
            weight, bias = head.weight[:, :m], head.bias
        else:
            weight, bias = head.classifiers[str(m)].weight, head.classifiers[str(m)].bias
        logits[m] = z_ND[:, :m] @ weight.T + (0 if bias is None else bias)
    return logits


@pytest.mark.parametrize("kind", ["nested", "tied"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [[2, 4, 16], [16], [3], [1, 2, 3, 15]])
def test_logits_loss_and_gradients_equal_a_plain_loop(kind, bias, widths):
    torch.manual_seed(0)
    head = build_head(kind, D, C, widths, bias)
    z = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    head.double()
    labels = torch.tensor([0, 2, 1, 1, 0])
    weights = [0.5 + i for i in range(len(widths))]

    total, losses = head.loss(z, labels, weights, label_smoothing=0.1)
    grads = torch.autograd.grad(total, [z, *head.parameters()], allow_unused=True)

    expected = {
        m: F.cross_entropy(logits, labels, label_smoothing=0.1)
        for m, logits in slow_logits(head, z).items()
    }
    expected_total = sum(w * expected[m] for w, m in zip(weights, widths, strict=True))
    expected_grads = torch.autograd.grad(expected_total, [z, *head.parameters()])
    assert losses.keys() == expected.keys()
    assert torch.allclose(total, expected_total)
    for m in widths:
        assert torch.allclose(head(z)[m], slow_logits(head, z)[m])
        assert torch.allclose(losses[m], expected[m])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, expected_grad)


@pytest.mark.parametrize("kind", ["nested", "tied"])
def test_the_loss_of_a_prefix_leaves_the_tail_alone(kind):
    """The claim itself: what prefix 8 is taught does not touch the entries beyond it."""
    z = torch.randn(N, D, requires_grad=True)
    head = build_head(kind, D, C, [8, 16])
    _, losses = head.loss(z, torch.zeros(N, dtype=torch.int64))
    losses[8].backward()
    assert z.grad[:, :8].abs().sum() > 0
    assert (z.grad[:, 8:] == 0).all()


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(1, D), min_size=1), st.integers(0, 10**6))
def test_logits_of_a_width_depend_on_its_prefix_only(widths, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(N, D, generator=generator)
    for kind in ("nested", "tied"):
        head = build_head(kind, D, C, sorted(widths))
        for m in sorted(widths):
            other = z.clone()
            other[:, m:] = torch.randn(N, D - m, generator=generator)
            assert torch.equal(head(z)[m], head(other)[m])


def test_tied_head_is_a_cumulative_sum_of_blocks():
    head = TiedHead(D, C, [2, 4, 16])
    z = torch.randn(N, D)
    blocks = [z[:, a:b] @ head.weight[:, a:b].T for a, b in [(0, 2), (2, 4), (4, 16)]]
    for m, total in zip(head.granularities, torch.stack(blocks).cumsum(0), strict=True):
        assert torch.allclose(head(z)[m], total + head.bias, atol=1e-6)


def test_tied_head_reads_any_width():
    head = TiedHead(D, C, [2, 16])
    z = torch.randn(N, D)
    assert torch.allclose(head.logits_at(z, 5), z[:, :5] @ head.weight[:, :5].T + head.bias)
    assert torch.allclose(head.logits_at(z, 16), head(z)[16], atol=1e-6)
    with pytest.raises(ValueError, match="17"):
        head.logits_at(z, 17)


def test_parameter_counts_and_shapes():
    nested, tied = NestedHead(D, C, [2, 4, 16]), TiedHead(D, C, [2, 4, 16])
    assert sum(p.numel() for p in nested.parameters()) == C * (2 + 4 + 16) + 3 * C
    assert tied.weight.shape == (C, D)
    assert sum(p.numel() for p in tied.parameters()) == C * D + C


@pytest.mark.parametrize("kind", ["nested", "tied"])
@pytest.mark.parametrize("widths", [[], [0, 4], [4, 4], [4, 2], [4, 32], [2.5]])
def test_bad_granularities_are_refused(kind, widths):
    with pytest.raises(ValueError, match="granularit"):
        build_head(kind, D, C, widths)


def test_embeddings_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"width 16, got 12 \(shape \(5, 12\)\)"):
        NestedHead(D, C, [2])(torch.zeros(5, 12))


def test_one_example_and_method_names():
    assert NestedHead(D, C, [2, 4])(torch.randn(1, D))[4].shape == (1, C)
    assert method_name(NestedHead(D, C, [2, 4])) == "MRL"
    assert method_name(NestedHead(D, C, [4])) == "FF"
    assert method_name(TiedHead(D, C, [2, 4])) == "MRL-E"


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"label 3 at index 1 is outside 0\.\.2"):
        NestedHead(D, C, [2]).loss(torch.randn(2, D), torch.tensor([0, 3]))
