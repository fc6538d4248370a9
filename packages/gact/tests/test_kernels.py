"""The choice of kernels: by tensor, by thread, undone at the end."""

import threading

import jaxtyping
import pytest
import torch

from gact import affine, kernels, masks


def test_default_on_a_processor_is_torch():
    assert kernels.backend_of(torch.zeros(1)) == "torch"


def test_choice_is_nested_and_undone():
    x = torch.zeros(1)
    with kernels.use("torch"):
        with kernels.use("auto"):
            assert kernels.backend_of(x) == "torch"
        assert kernels.backend_of(x) == "torch"
    if kernels.has_triton():
        with pytest.raises(TypeError), kernels.use("triton"):
            kernels.quantise(x.int(), 4, key=0)
        with kernels.use("triton"):
            assert kernels.backend_of(x) == "triton"
    assert kernels.backend_of(x) == "torch"


def test_choice_is_this_threads():
    if not kernels.has_triton():
        pytest.skip("Triton cannot be imported")
    seen = []
    with kernels.use("triton"):
        thread = threading.Thread(target=lambda: seen.append(kernels.backend_of(torch.zeros(1))))
        thread.start()
        thread.join()
    assert seen == ["torch"]


def test_unknown_backend(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own message
    with pytest.raises(ValueError, match="backend='cuda'"), kernels.use("cuda"):
        pass


def test_missing_triton(monkeypatch):
    monkeypatch.setattr(kernels, "has_triton", lambda: False)
    with pytest.raises(ImportError, match=r"gact\[triton\]"), kernels.use("triton"):
        pass


def test_every_kernel_is_the_one_of_its_module():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    codes = kernels.quantise(x, 4, key=5, group_size=64)
    assert torch.equal(codes.buffer, affine.quantise(x, 4, key=5, group_size=64).buffer)
    assert torch.equal(kernels.dequantise(codes, dtype=torch.float64), affine.dequantise(codes, dtype=torch.float64))
    mask = x > 0
    assert torch.equal(kernels.pack_bits(mask), masks.pack_bits(mask))
    assert torch.equal(kernels.unpack_bits(kernels.pack_bits(mask), 1000), mask)
    fields = (x.abs() * 3).to(torch.uint8).clamp_(max=3)
    assert torch.equal(kernels.pack_fields(fields, 2), masks.pack_fields(fields, 2))
    assert torch.equal(kernels.unpack_fields(kernels.pack_fields(fields, 2), 2, 1000), fields)


def test_threads_do_not_share_scratch():
    """Two threads code at once, again and again; working memory that they shared would mix their codes."""
    inputs = [torch.randn(200_000, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    expected = [affine.dequantise(affine.quantise(x, 4, key=9)) for x in inputs]
    wrong = []

    def work(which):
        results = (affine.dequantise(affine.quantise(inputs[which], 4, key=9)) for _ in range(20))
        wrong.extend(which for result in results if not torch.equal(result, expected[which]))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
