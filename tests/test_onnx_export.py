"""ONNX graphs, run by ONNX Runtime, against the models they were made from."""

import json

import pytest
import torch
from random_models import images_for, source

import mrl
from mrl.onnx_export import export_onnx


def run_onnx(path, **inputs):
    """{output: tensor} of ONNX Runtime; without it, and the exporter's packages, a skip."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(y) for name, y in zip(names, found, strict=True)}


@pytest.fixture
def needs_onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    ("kind", "widths", "logits"),
    [("nested", None, [2, 5, 16]), ("nested", [3, 5], [5]), ("tied", [3, 5], [3, 5])],
    ids=["trained", "chosen", "tied"],
)
@torch.no_grad()
def test_onnx_gives_prefixes_and_logits(tmp_path, needs_onnx, kind, widths, logits):
    exported, out = source(kind), tmp_path / "model.onnx"
    names = export_onnx(exported, out, widths=widths)
    images = images_for(exported)  # 3 of them; the graph was made with 2
    found = run_onnx(out, images=images)
    widths = widths or [2, 5, 16]
    assert (
        list(found) == names == [f"embedding_{m}" for m in widths] + [f"logits_{m}" for m in logits]
    )
    z, head = exported.model.encode(images), exported.model.head
    for m in widths:
        torch.testing.assert_close(found[f"embedding_{m}"], mrl.truncate(z, m))
    for m in logits:
        expected = head.logits_at(z, m) if kind == "tied" else head(z)[m]
        torch.testing.assert_close(found[f"logits_{m}"], expected)


@torch.no_grad()
def test_onnx_takes_the_width_as_an_input(tmp_path, needs_onnx, capfd):
    import onnx

    exported, out = source(), tmp_path / "model.onnx"
    export_onnx(exported, out, width_input=True)
    assert "def forward" not in capfd.readouterr().err  # traced at once, by no fallback
    images = images_for(exported)
    z = exported.model.encode(images)
    for m in (1, 2, 7, 16):
        found = run_onnx(out, images=images, width=torch.tensor(m))
        torch.testing.assert_close(found["embedding"], mrl.truncate(z, m))
    with pytest.raises(Exception, match="out of data bounds"):
        run_onnx(out, images=images, width=torch.tensor(17))
    metadata = {prop.key: prop.value for prop in onnx.load(out).metadata_props}
    assert json.loads(metadata["mrl"]) == exported.description()


@pytest.mark.slow
@torch.no_grad()
def test_a_transformer_is_exported_to_onnx(tmp_path, needs_onnx):
    backbone = {"name": "vit_tiny_patch16_224", "image_size": 32, "in_channels": 3}
    exported, out = source(granularities=[8], backbone=backbone), tmp_path / "model.onnx"
    export_onnx(exported, out)
    images = images_for(exported)
    expected = exported.model(images)[8]
    found = run_onnx(out, images=images)["logits_8"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [4, 17]}, "17 exceeds the embedding width 16"),
        ({"widths": [4], "width_input": True}, "one of the two"),
    ],
)
def test_onnx_widths_that_do_not_fit_are_refused(tmp_path, needs_onnx, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(source(), tmp_path / "model.onnx", **options)


def test_what_onnx_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mrl.onnx_export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        export_onnx(source(), tmp_path / "model.onnx")
