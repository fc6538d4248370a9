"""Layouts: boxes from meshes and specs, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmesh_reshard import Layout, LayoutError, Mesh
from xmesh_reshard.layout import dtype_of


def test_paper_notation_equals_named_axes() -> None:
    mesh = Mesh.grid((2, 3), ("data", "model"))
    assert Layout.sharded((6, 12), "int8", mesh, "S1S0") == Layout.sharded((6, 12), "int8", mesh, ("model", "data"))
    assert Layout.sharded((6, 12), "int8", mesh, "RS01") == Layout.sharded(
        (6, 12), "int8", mesh, (None, ("data", "model"))
    )
    assert Layout.sharded((6, 12), "int8", mesh, "RS01") != Layout.sharded((6, 12), "int8", mesh, "RS10")


def test_axes_are_major_to_minor() -> None:
    layout = Layout.sharded((12,), "int8", Mesh.grid((2, 3)), "S10")
    # device 2 i + ... sits at (i, j): part j * 2 + i
    assert [layout.slices(3 * i + j)[0].start for i in range(2) for j in range(3)] == [0, 4, 8, 2, 6, 10]


@given(n=st.integers(0, 40), parts=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
@pytest.mark.property
def test_uneven_parts_are_of_the_ceiling_and_cover(n: int, parts: int) -> None:
    layout = Layout.sharded((n,), "int8", Mesh.grid((parts,)), (0,))
    lengths = [layout.shard_shape(d)[0] for d in range(parts)]
    assert sum(lengths) == n
    assert all(length in (-(-n // parts), 0) or d == -(-n // -(-n // parts)) - 1 for d, length in enumerate(lengths))


def test_split_and_assemble_are_inverse() -> None:
    array = np.arange(5 * 7, dtype=np.float32).reshape(5, 7)
    layout = Layout.sharded((5, 7), "float32", Mesh.grid((2, 3)), "S0S1")
    assert np.array_equal(layout.assemble(layout.split(array)), array)
    scalar = Layout.sharded((), "float64", Mesh.grid((3,)), "")
    assert scalar.assemble(scalar.split(np.array(2.5))) == 2.5


def test_equal_layouts_are_equal_and_hash_alike() -> None:
    one = Layout.sharded((4,), "float32", Mesh.grid((2,)), (0,))
    two = Layout.from_boxes((4,), "float32", {1: [slice(2, None)], 0: [(0, 2)]})
    assert one == two
    assert len({one, two}) == 1
    assert one != Layout.sharded((4,), "int32", Mesh.grid((2,)), (0,))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), "S0R"), "2 dimensions; the shape has 1"),
        (lambda: Layout.sharded((4, 4), "int8", Mesh.grid((2,)), ("0", "0")), "twice"),
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), "S3"), "names mesh axis 3"),
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), ("x",)), "names the mesh axis 'x'"),
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), "S"), "S needs the number"),
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), "Q"), "cannot read the spec"),
        (lambda: Layout.sharded((-4,), "int8", Mesh.grid((2,)), "R"), "negative"),
        (lambda: Layout.sharded((4,), "float33", Mesh.grid((2,)), "R"), "unknown dtype"),
        (lambda: Layout.sharded((4,), "int4", Mesh.grid((2,)), "R"), "whole bytes"),
        (lambda: Layout.from_boxes((4,), "int8", {0: [(0, 5)]}), "does not lie inside"),
        (lambda: Layout.from_boxes((4,), "int8", {0: [(0, 2), (0, 1)]}), "2 dimensions"),
        (lambda: Layout.from_boxes((4,), "int8", {0: [slice(0, 4, 2)]}), "step 2"),
        (lambda: Layout.from_boxes((4,), "int8", {}), "at least one device"),
        (lambda: Mesh(np.array([0, 0])), "repeated"),
        (lambda: Mesh(np.array([0.5])), "whole numbers"),
        (lambda: Mesh(np.arange(4).reshape(2, 2), ("a", "a")), "different names"),
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), "R").slices(7), "not in this layout"),
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), "R").split(np.zeros(4)), "float64"),
        (lambda: Layout.sharded((4,), "int8", Mesh.grid((2,)), "R").assemble({0: np.zeros(4, "i1")}), "nothing"),
    ],
)
def test_nonsense_is_refused(make, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        make()


def test_types_of_one_byte_and_less_common_ones() -> None:
    assert [dtype_of(n).itemsize for n in ("bfloat16", "float8_e4m3fn", "bool", "complex128")] == [2, 1, 1, 16]
