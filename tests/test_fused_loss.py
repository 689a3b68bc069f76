"""The fast loss of a head against the plain one: autograd of nested_cross_entropy(head(z))."""

import pytest
import torch

from mrl import fused_loss
from mrl.heads import build_head
from mrl.losses import nested_cross_entropy, weighted_sum

N, C, D = 7, 5, 16
WIDTHS = [2, 4, 11]  # the last five entries of z are read by no classifier
KINDS = pytest.mark.parametrize("kind", ["nested", "tied"])


def plain_loss(head, z_ND, labels, c_G, label_smoothing=0.0):
    losses = nested_cross_entropy(head(z_ND), labels, label_smoothing)
    return weighted_sum(losses, c_G), losses


def problem(kind, *, bias=True, soft=False, dtype=torch.float64):
    torch.manual_seed(0)
    head = build_head(kind, D, C, WIDTHS, bias).to(dtype)
    z_ND = torch.randn(N, D, dtype=dtype, requires_grad=True)
    labels = torch.rand(N, C, dtype=dtype) if soft else torch.randint(C, (N,))
    return head, z_ND, labels  # soft labels do not sum to 1: F.cross_entropy takes them as they are


def gradients(loss, head, z_ND):
    inputs = [t for t in (z_ND, *head.parameters()) if t.requires_grad]
    return torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)


def assert_close(values, expected, **tolerance):
    for value, wanted in zip(values, expected, strict=True):
        assert (value is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(value, wanted, **tolerance)


@KINDS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_bytes", [2**25, 300], ids=["one_chunk", "many_chunks"])
def test_equals_the_plain_loss(monkeypatch, kind, bias, soft, smoothing, chunk_bytes):
    monkeypatch.setattr(fused_loss, "CHUNK_BYTES", chunk_bytes)
    head, z_ND, labels = problem(kind, bias=bias, soft=soft)
    for c_G in ([1.0, 1.0, 1.0], [0.5, 0.0, 2.0], [0.0, 3.0, 0.0]):
        total, losses = head.loss(z_ND, labels, c_G, smoothing)
        expected_total, expected_losses = plain_loss(head, z_ND, labels, c_G, smoothing)
        assert losses.keys() == expected_losses.keys()
        assert_close([total, *losses.values()], [expected_total, *expected_losses.values()])
        assert_close(gradients(total, head, z_ND), gradients(expected_total, head, z_ND))


@KINDS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_far_apart_logits_lose_nothing(kind, smoothing):
    """Probabilities of 0 in float32, whose logarithm the loss needs."""
    head, z_ND, labels = problem(kind, dtype=torch.float32)
    with torch.no_grad():
        z_ND.mul_(1000)
    total, losses = head.loss(z_ND, labels, None, smoothing)
    expected, expected_losses = plain_loss(head, z_ND, labels, [1.0] * 3, smoothing)
    assert float(expected) > 200
    near = {"rtol": 1e-5, "atol": 1e-4}
    assert_close([total, *losses.values()], [expected, *expected_losses.values()], **near)
    assert_close(gradients(total, head, z_ND), gradients(expected, head, z_ND), **near)


def test_chunks_are_the_parts_of_the_batch(monkeypatch):
    """The small limit of the test above does split its batch."""
    monkeypatch.setattr(fused_loss, "CHUNK_BYTES", 300)
    assert [(r.start, r.stop) for r in fused_loss._chunks(7, 100)] == [(0, 3), (3, 6), (6, 7)]
    assert len(fused_loss._chunks(7, 10**6)) == 7
    assert fused_loss._chunks(7, 1) == [slice(0, 7)]


@KINDS
def test_double_precision_gradcheck(kind):
    head, z_ND, labels = problem(kind)
    names = [name for name, _ in head.named_parameters()]

    def total(z_ND, *parameters):
        named = dict(zip(names, parameters, strict=True))
        call = (z_ND, labels, [0.5, 1.0, 2.0], 0.1)
        return torch.func.functional_call(
            _Loss(head), {f"head.{k}": v for k, v in named.items()}, call
        )

    assert torch.autograd.gradcheck(total, (z_ND, *head.parameters()))


class _Loss(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, *args):
        return self.head.loss(*args)[0]


@KINDS
@pytest.mark.parametrize("zero", [False, True], ids=["all", "weight_0"])
def test_a_single_loss_has_its_own_gradient(kind, zero):
    head, z_ND, labels = problem(kind)
    c_G = [1.0, 0.0 if zero else 1.0, 1.0]
    total, losses = head.loss(z_ND, labels, c_G)
    expected_total, expected = plain_loss(head, z_ND, labels, c_G)
    mixed, expected_mixed = (
        t * 3 - parts[4] for t, parts in [(total, losses), (expected_total, expected)]
    )
    for value, wanted in [(losses[4], expected[4]), (mixed, expected_mixed)]:
        for grad, wanted_grad in zip(
            gradients(value, head, z_ND), gradients(wanted, head, z_ND), strict=True
        ):
            if wanted_grad is None:
                assert grad is None
            else:
                torch.testing.assert_close(grad, wanted_grad)


@KINDS
def test_backward_scales_accumulates_and_can_be_repeated(kind):
    head, z_ND, labels = problem(kind)
    total, _ = head.loss(z_ND, labels)
    once = gradients(plain_loss(head, z_ND, labels, [1.0] * 3)[0], head, z_ND)
    (1024 * total).backward(retain_graph=True)
    assert_close([t.grad for t in (z_ND, *head.parameters())], [1024 * g for g in once])
    total.backward()  # the first gradients are gone by now
    assert_close([t.grad for t in (z_ND, *head.parameters())], [1025 * g for g in once])


@KINDS
@pytest.mark.parametrize(
    "frozen", [["z"], ["weight"], ["bias"], ["weight", "bias"], ["z", "weight"]], ids="-".join
)
def test_what_is_frozen_gets_no_gradient(kind, frozen):
    head, z_ND, labels = problem(kind)
    z_ND.requires_grad_("z" not in frozen)
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name.split(".")[-1] not in frozen)
    total, _ = head.loss(z_ND, labels)
    expected = gradients(plain_loss(head, z_ND, labels, [1.0] * 3)[0], head, z_ND)
    assert_close(gradients(total, head, z_ND), expected)
    total.backward()
    assert all((t.grad is None) != t.requires_grad for t in (z_ND, *head.parameters()))


@KINDS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient_there_are_just_losses(kind, mode):
    head, z_ND, labels = problem(kind)
    with mode():
        total, losses = head.loss(z_ND, labels)
    expected_total, expected = plain_loss(head, z_ND, labels, [1.0] * 3)
    assert not total.requires_grad
    assert_close(
        [total, *losses.values()],
        [expected_total.detach(), *(v.detach() for v in expected.values())],
    )


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("source", ["autocast", "autocast_half_z", "half_head"])
def test_short_products_are_added_up_in_float32(kind, dtype, source):
    head, z_ND, labels = problem(kind, dtype=torch.float32)
    total, _ = head.loss(z_ND, labels)
    expected = gradients(total, head, z_ND)
    if source == "half_head":
        head = head.to(dtype)
    z = z_ND if source == "autocast" else z_ND.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=source != "half_head"):
        short_total, losses = head.loss(z, labels)
    assert short_total.dtype == torch.float32 == losses[2].dtype
    torch.testing.assert_close(short_total, total, rtol=1e-2, atol=0)
    grads = gradients(short_total, head, z)
    assert [g.dtype for g in grads] == [t.dtype for t in (z, *head.parameters())]
    for grad, wanted in zip(grads, expected, strict=True):
        assert (grad.float() - wanted).norm() <= 0.03 * wanted.norm()


def test_fp16_gradients_survive_a_small_scale():
    """1/N of a probability is below what fp16 holds; the loss scale comes too late to save it."""
    head = build_head("nested", D, 1000, WIDTHS)
    z_ND, labels = torch.randn(512, D, requires_grad=True), torch.randint(1000, (512,))
    expected = gradients(head.loss(z_ND, labels)[0], head, z_ND)
    with torch.autocast("cpu", torch.float16):
        total, _ = head.loss(z_ND, labels)
    for grad, wanted in zip(gradients(total, head, z_ND), expected, strict=True):
        assert (grad - wanted).norm() <= 0.01 * wanted.norm()


@KINDS
def test_large_logits_do_not_overflow(kind):
    head, z_ND, labels = problem(kind, dtype=torch.float32)
    z_ND = (1e4 * z_ND).detach().requires_grad_()
    total, _ = head.loss(z_ND, labels)
    expected, _ = plain_loss(head, z_ND, labels, [1.0] * 3)
    assert_close([total], [expected])
    assert_close(gradients(total, head, z_ND), gradients(expected, head, z_ND))


@KINDS
def test_a_second_derivative_is_refused(kind):
    head, z_ND, labels = problem(kind)
    total, _ = head.loss(z_ND, labels)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, z_ND, create_graph=True)


@KINDS
def test_parameters_changed_before_a_second_backward_are_noticed(kind):
    head, z_ND, labels = problem(kind)
    total, _ = head.loss(z_ND, labels)
    total.backward(retain_graph=True)
    with torch.no_grad():
        next(head.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_labels_with_gradient_get_one():
    head, z_ND, labels = problem("nested", soft=True)
    labels.requires_grad_()
    total, _ = head.loss(z_ND, labels)
    (grad,) = torch.autograd.grad(total, labels)
    (expected,) = torch.autograd.grad(plain_loss(head, z_ND, labels, [1.0] * 3)[0], labels)
    torch.testing.assert_close(grad, expected)


@KINDS
def test_the_same_bits_every_time(kind):
    head, z_ND, labels = problem(kind, dtype=torch.float32)
    runs = [gradients(head.loss(z_ND, labels)[0], head, z_ND) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_compiled():
    head, z_ND, labels = problem("tied")
    compiled = torch.compile(lambda z: head.loss(torch.tanh(z), labels)[0], backend="aot_eager")
    total = compiled(z_ND)
    expected = plain_loss(head, torch.tanh(z_ND), labels, [1.0] * 3)[0]
    assert_close([total], [expected])
    assert_close(gradients(total, head, z_ND), gradients(expected, head, z_ND))


@KINDS
def test_bad_input_is_refused(kind):
    head, z_ND, labels = problem(kind)
    with pytest.raises(ValueError, match=r"N labels, got shapes \(7, 16\) and \(6,\)"):
        head.loss(z_ND, labels[:6])
    with pytest.raises(ValueError, match=r"got shapes \(0, 16\) and \(0,\)"):
        head.loss(z_ND[:0], labels[:0])
    with pytest.raises(ValueError, match="all loss weights are zero"):
        head.loss(z_ND, labels, [0.0] * 3)
    with pytest.raises(ValueError, match="width 16, got 12"):
        head.loss(z_ND[:, :12], labels)
    with pytest.raises(RuntimeError, match="dtype"):
        head.loss(z_ND.float(), labels)


@KINDS
def test_backward_under_autocast_computes_as_forward_did(kind):
    head, z_ND, labels = problem(kind, dtype=torch.float32)
    _, losses = head.loss(z_ND, labels)
    expected = gradients(losses[4], head, z_ND)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(gradients(losses[4], head, z_ND), expected, rtol=0, atol=0)
