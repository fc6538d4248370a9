"""The kernel: the tests of `test_fused.py` under Triton's interpreter, how work is cut, and compiling for a device."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from dncc import fused_triton  # noqa: E402

HERE = Path(__file__).parent
NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TERMS = ("member_ptr", "ensemble_ptr", "ambiguity_ptr", "row_ptr")


def test_the_interpreted_kernel_passes_the_tests_of_the_torch_path():
    """In a process of its own: the interpreter must be chosen before Triton is imported."""
    # NumPy, which the interpreter computes with, warns of what a device does not: NaN in what is masked or left out.
    options = ("-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / "test_fused.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "DNCC_TEST_BACKEND": "triton"},
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("members", [1, 2, 3, 5, 8, 33, 64, 200])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_plans_cover_the_problem_and_are_not_too_large(members, itemsize):
    for batch in (1, 3, 64, 5000, 10**6):
        for classes in (1, 2, 10, 100, 129, 1000, 1024, 5000, 30522, 128256):
            plan = fused_triton.plan(members, batch, classes, itemsize)
            assert all(math.log2(n).is_integer() for n in plan)
            assert members <= plan.members < 2 * members
            assert plan.samples < 2 * batch
            held = plan.members * plan.samples * plan.classes * itemsize
            assert held <= 64 * 1024
            assert held / (32 * plan.warps) <= 128  # bytes in a thread's registers
            if plan.classes < classes:
                assert (plan.samples, plan.classes >= 32) == (1, True)
            else:
                assert plan.classes < 2 * classes


@pytest.fixture(scope="module")
def kernels():
    """The kernels as they are in the file: the shape checker, which decorates what is imported, is none of Triton's."""
    path = Path(fused_triton.__file__).with_name("fused_kernels.py")
    spec = importlib.util.spec_from_file_location("kernels_as_written", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def ptx(kernel, arguments, constants):
    """Compile for an H100, from any machine, for arguments as the launcher would find them."""
    constants = dict(constants)
    options = {key: constants.pop(key) for key in ("num_warps", "enable_fp_fusion")}
    signature, fixed, facts = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = arguments.get(name)
        if name in constants or value is None or value == 1:
            signature[name], fixed[(place,)] = "constexpr", constants.get(name, value)
            continue
        pointer = isinstance(value, str) and value.startswith("*")
        signature[name] = value if isinstance(value, str) else "i32" if value < 2**31 else "i64"
        if pointer or (not isinstance(value, str) and value % 16 == 0):
            facts[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, fixed, facts)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def terms_ptx(kernels, shape, dtype, *, geometric=False, weighted=True, gradient=True, scaled=False, strides=None):
    _, batch, classes = shape
    logits = torch.empty_strided(shape, strides or (batch * classes, classes, 1), dtype=dtype, device="meta")
    numbers, constants = fused_triton.kernel_arguments(
        logits, logits if gradient else None, geometric, False, weighted, scaled
    )
    wide = "*fp64" if dtype == torch.float64 else "*fp32"
    arguments = {"z_ptr": "*" + NAMES[dtype], "target_ptr": "*i64", "lam_ptr": wide, "batch": "i32"}
    arguments |= {"grad_ptr": arguments["z_ptr"]} if gradient else {}
    arguments |= {"weight_ptr": wide, "total_ptr": wide} if weighted else {}
    arguments |= {"factor_ptr": wide} if scaled else dict.fromkeys(TERMS, wide)
    arguments |= dict(zip(("zm", "zb", "zc", "gm", "gb", "gc"), numbers, strict=True))
    return ptx(kernels.terms_kernel, arguments, constants)


def widest(code, what):
    """Bits of the widest access of device memory."""
    return max(int(n or 1) * int(bits) for n, bits in re.findall(what + r"\.global(?:\.v(\d))?\.b(\d+)", code))


@pytest.mark.parametrize(
    ("shape", "dtype", "bits"),
    [
        ((8, 4096, 1000), torch.bfloat16, 128),
        ((8, 4096, 1000), torch.float32, 128),
        ((8, 4096, 100), torch.bfloat16, 64),  # a sample's 200 bytes begin at multiples of 8
        ((8, 8192, 128256), torch.bfloat16, 128),  # two loops; the members lie 2^30 apart
    ],
)
def test_compiles_for_a_device_with_joined_loads_and_stores(kernels, shape, dtype, bits):
    code = terms_ptx(kernels, shape, dtype)
    assert widest(code, "ld") == widest(code, "st") == bits


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((64, 65536, 30522), torch.float32, {"geometric": True}),
        ((3, 100, 10), torch.bfloat16, {"gradient": False, "weighted": False}),
        ((5, 4096, 1000), torch.float16, {"geometric": True, "scaled": True}),
        ((4, 100, 50), torch.float64, {"weighted": False}),
        ((4, 100, 50), torch.bfloat16, {"strides": (1, 200, 4)}),
    ],
)
def test_compiles_for_a_device(kernels, shape, dtype, options):
    assert "st.global" in terms_ptx(kernels, shape, dtype, **options)


@pytest.mark.parametrize(("wide", "narrow"), [("*fp32", "*bf16"), ("*fp64", "*fp64")])
def test_the_factors_kernel_compiles_for_a_device(kernels, wide, narrow):
    constants = {"BLOCK": 4096, "num_warps": 4, "enable_fp_fusion": False}
    code = ptx(kernels.scale_kernel, {"x_ptr": narrow, "factor_ptr": wide, "numel": 10**10}, constants)
    assert widest(code, "st") == 128
