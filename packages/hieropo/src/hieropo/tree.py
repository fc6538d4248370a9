"""Trees of tasks and the Gaussian prior over them: tasks in groups, groups in larger groups, up to one root.

A node v other than the root has θ_v | θ_parent ~ N(θ_parent, Λ_v), the root has θ ~ N(mean, root_cov). Tasks are
leaves, at any depth and next to groups. HierOPO's hierarchy is the tree of depth one.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int

from hieropo.briefly import briefly
from hieropo.checks import as_generator, as_spread
from hieropo.linalg import as_covariance, as_noise, as_real, psd_factor

__all__ = ["Tree", "TreePrior"]


@final
@dataclass(frozen=True, eq=False)
class Tree:
    """A rooted tree in breadth-first order: the root first, every level contiguous, siblings next to each other.

    Build it with `Tree.from_parents`, `Tree.from_paths` or `Tree.flat`, not by hand.

    Args:
        labels: Node labels, root first.
        parent: Position of each node's parent, -1 for the root; shape `[nodes]`.
        depth: Distance from the root; shape `[nodes]`.

    Example:
        >>> tree = Tree.from_parents({"ann": "day", "bob": "day", "day": "all", "eve": "all"})
        >>> tree.labels, tree.leaves
        (('all', 'day', 'eve', 'ann', 'bob'), ('eve', 'ann', 'bob'))
    """

    labels: tuple[Hashable, ...]
    parent: Int[np.ndarray, " nodes"]
    depth: Int[np.ndarray, " nodes"]
    _position: dict[Hashable, int] = field(init=False, repr=False)

    def __repr__(self) -> str:
        return f"Tree(nodes={len(self)}, tasks={int(self.is_leaf.sum())}, height={self.height})"

    def __post_init__(self) -> None:
        position = {label: i for i, label in enumerate(self.labels)}
        for i, label in enumerate(self.labels):
            if label and isinstance(label, tuple):
                position.setdefault(_joined(label), i)
        object.__setattr__(self, "_position", position)

    @classmethod
    def from_parents(cls, parents: Mapping[Hashable, Hashable]) -> Tree:
        """The tree in which `parents[node]` is the node above; the one label without a parent is the root.

        Args:
            parents: For every node but the root, its parent.

        Raises:
            ValueError: No node, more than one root, or a cycle.
        """
        if not parents:
            raise ValueError("the tree is empty; give at least one task with its parent")
        roots = [label for label in dict.fromkeys(parents.values()) if label not in parents]
        if len(roots) != 1:
            problem = f"{len(roots)} nodes without a parent: {roots[:5]}" if roots else "a cycle and no root"
            raise ValueError(f"a tree has exactly one root, the given parents have {problem}; name one common root")
        children: dict[Hashable, list[Hashable]] = {}
        for node, above in parents.items():
            children.setdefault(above, []).append(node)
        return cls._breadth_first(roots[0], children, len(parents) + 1)

    @classmethod
    def from_paths(cls, paths: Mapping[Hashable, Sequence[Hashable]]) -> Tree:
        """The tree in which task `t` hangs below the groups `paths[t]`, outermost first; an empty path is the root.

        A group is named by its whole path as a tuple, so equal names in different branches are different groups;
        the root is `()`. Where a label must be a string, as in `TreeOPO.predict`, the names joined by "/" stand for it:
        "north/a" is the group `("north", "a")`.

        Args:
            paths: For every task, the names of the groups around it.

        Raises:
            ValueError: No task, a task named like a group, or two groups that join to one name.

        Example:
            >>> tree = Tree.from_paths({"ann": ("north", "a"), "bob": ("south", "a"), "eve": ()})
            >>> tree.leaves, tree.labels[tree.position("south/a")]
            (('eve', 'ann', 'bob'), ('south', 'a'))
        """
        if not paths:
            raise ValueError("the tree is empty; give at least one task with its path")
        children: dict[Hashable, list[Hashable]] = {}
        seen: set[tuple[Hashable, ...]] = {()}
        for task, path in paths.items():
            if isinstance(path, str):
                raise TypeError(f"the path of task {task!r} is the string {path!r}; give a sequence of group names")
            full = tuple(path)
            for end in range(1, len(full) + 1):
                if full[:end] not in seen:
                    seen.add(full[:end])
                    children.setdefault(full[: end - 1], []).append(full[:end])
            children.setdefault(full, []).append(task)
        joined = {_joined(group): group for group in seen}
        if len(joined) < len(seen):
            twice = next(group for group in seen if joined[_joined(group)] != group)
            raise ValueError(f"two groups join to the name {_joined(twice)!r}; rename one of them")
        clash = [task for task in paths if task in seen or task in joined]
        if clash:
            raise ValueError(f"{clash[0]!r} names both a task and a group; rename the task")
        return cls._breadth_first((), children, len(seen) + len(paths))

    @classmethod
    def flat(cls, tasks: Iterable[Hashable], *, root: Hashable = None) -> Tree:
        """The tree of depth one, the hierarchy of HierOPO: every task directly below the root."""
        return cls.from_parents(dict.fromkeys(tasks, root))

    @classmethod
    def _breadth_first(cls, root: Hashable, children: Mapping[Hashable, list[Hashable]], nodes: int) -> Tree:
        labels, parent, depth = [root], [-1], [0]
        for position in range(nodes):
            if position >= len(labels):
                raise ValueError("the parents contain a cycle that the root does not reach; every node needs one root")
            for child in children.get(labels[position], ()):
                labels.append(child)
                parent.append(position)
                depth.append(depth[position] + 1)
        return cls(tuple(map(_plain, labels)), np.array(parent), np.array(depth))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def height(self) -> int:
        """Depth of the deepest node."""
        return int(self.depth[-1])

    @cached_property
    def levels(self) -> tuple[slice, ...]:
        """The nodes of depth 0, 1, ..., height as slices."""
        edges = np.searchsorted(self.depth, np.arange(self.height + 2))
        return tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(edges))

    @cached_property
    def is_leaf(self) -> Bool[np.ndarray, " nodes"]:
        """Which nodes have no children."""
        leaf = np.ones(len(self), dtype=bool)
        leaf[self.parent[1:]] = False
        return leaf

    @property
    def leaves(self) -> tuple[Hashable, ...]:
        """Labels of the nodes without children."""
        return tuple(self.labels[i] for i in np.flatnonzero(self.is_leaf))

    @cached_property
    def leaf_kinds(self) -> frozenset[type]:
        """`str`, `int` or another class, of the labels of the leaves."""
        kinds = {type(label) for label in self.leaves}
        return frozenset(next((base for base in (str, int) if issubclass(kind, base)), kind) for kind in kinds)

    def __contains__(self, label: object) -> bool:
        return label in self._position

    def position(self, label: Hashable) -> int:
        """Position of a node; a group named by its path is found by the names joined by "/" too.

        Raises:
            KeyError: The tree has no such node; the message names near matches.
        """
        try:
            return self._position[label]
        except KeyError:
            near = difflib.get_close_matches(str(label), [str(known) for known in self.labels], n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise KeyError(f"the tree has no node {label!r} among its {len(self)} nodes{hint}") from None

    def ancestors(self, position: int) -> list[int]:
        """Positions from a node itself up to the root."""
        chain = [position]
        while self.parent[chain[-1]] >= 0:
            chain.append(int(self.parent[chain[-1]]))
        return chain


def _plain(label: Hashable) -> Hashable:
    """A label as Python's own string or integer, equal to NumPy's but shorter to read."""
    if isinstance(label, tuple):
        return tuple(map(_plain, label))
    return label.item() if isinstance(label, np.generic) else label


def _joined(path: tuple[Hashable, ...]) -> str:
    return "/".join(map(str, path))


@final
@dataclass(frozen=True, eq=False)
class TreePrior:
    """Gaussian tree prior: θ_root ~ N(mean, root_cov), θ_v | θ_parent ~ N(θ_parent, Λ_v), rewards with noise sigma.

    Λ_v is `node_covs[label]` where given, else `level_covs[depth - 1]`. Singular covariances, zero included, are
    allowed.

    Args:
        tree: The nodes.
        mean: Mean of the root, shape `[d]` (μ_q of the two-level model).
        root_cov: Covariance of the root, shape `[d, d]` (Σ_q).
        level_covs: Covariance of a node of depth 1, 2, ... around its parent, shape `[levels, d, d]`; more levels than
            the tree has are allowed and serve new nodes below.
        sigma: Standard deviation of the reward noise.
        node_covs: Covariances of single nodes, by label.

    Raises:
        ValueError: A shape that does not fit, a matrix that is not symmetric positive semi-definite, sigma <= 0, or
            fewer levels than the tree has.

    Example:
        >>> tree = Tree.from_paths({"ann": ("day",), "bob": ("day",), "eve": ("night",)})
        >>> TreePrior.isotropic(tree, 2, sigma_root=1.0, sigma_levels=[0.5, 0.2], sigma=0.3).level_covs.shape
        (2, 2, 2)
    """

    tree: Tree
    mean: Float[np.ndarray, " d"]
    root_cov: Float[np.ndarray, "d d"]
    level_covs: Float[np.ndarray, "levels d d"]
    sigma: float
    node_covs: Mapping[Hashable, Float[np.ndarray, "d d"]] = field(default_factory=dict)

    __repr__ = briefly("d", "sigma", "tree")

    def __post_init__(self) -> None:
        mean = np.array(as_real(self.mean, "mean"))
        if mean.ndim != 1 or mean.size == 0 or not np.isfinite(mean).all():
            raise ValueError(f"mean must be one finite vector, got shape {mean.shape}")
        d = mean.size
        level_covs = np.asarray(self.level_covs, dtype=float)
        if level_covs.ndim != 3 or level_covs.shape[1:] != (d, d) or len(level_covs) < self.tree.height:
            raise ValueError(
                f"level_covs must have shape [levels, {d}, {d}] with at least {self.tree.height} levels, "
                f"got {level_covs.shape}"
            )
        unknown = [label for label in self.node_covs if label not in self.tree]
        if unknown:
            self.tree.position(unknown[0])
        if self.tree.labels[0] in self.node_covs:
            raise ValueError("node_covs names the root; set root_cov instead")
        covs = [as_covariance(cov, d, f"level_covs[{k}]") for k, cov in enumerate(level_covs)]
        mean.setflags(write=False)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "sigma", as_noise(self.sigma))
        object.__setattr__(self, "root_cov", as_covariance(self.root_cov, d, "root_cov"))
        object.__setattr__(self, "level_covs", np.array(covs).reshape(-1, d, d))
        named = {label: as_covariance(cov, d, f"node_covs[{label!r}]") for label, cov in self.node_covs.items()}
        object.__setattr__(self, "node_covs", named)

    @classmethod
    def isotropic(
        cls,
        tree: Tree,
        d: int,
        *,
        sigma_root: float,
        sigma_levels: Sequence[float],
        sigma: float,
        mean: float = 0.0,
    ) -> TreePrior:
        """A prior with covariances `sigma_root² I` at the root and `sigma_levels[k]² I` at depth k + 1.

        Raises:
            ValueError: A standard deviation that is negative or not finite, or fewer levels than the tree has.
        """
        eye, root = np.eye(d), as_spread(sigma_root, "sigma_root")
        levels = [as_spread(value, f"sigma_levels[{k}]") for k, value in enumerate(sigma_levels)]
        covs = np.array([value**2 * eye for value in levels]).reshape(-1, d, d)
        return cls(tree, np.full(d, float(mean)), root**2 * eye, covs, sigma)

    @property
    def d(self) -> int:
        """Dimension of the features."""
        return self.mean.size

    def level_cov(self, depth: int) -> Float[np.ndarray, "#n d d"]:
        """Λ of the nodes of one depth: one matrix for all `[1, d, d]`, or one a node `[n, d, d]`."""
        shared = self.level_covs[depth - 1][None]
        nodes = self.tree.levels[depth]
        named = [i for i in map(self.tree.position, self.node_covs) if nodes.start <= i < nodes.stop]
        if not named:
            return shared
        covs = np.repeat(shared, nodes.stop - nodes.start, axis=0)
        for i in named:
            covs[i - nodes.start] = self.node_covs[self.tree.labels[i]]
        return covs

    def sample(self, rng: np.random.Generator) -> Float[np.ndarray, "nodes d"]:
        """Parameters of all nodes, drawn from the prior, in the tree's order."""
        rng = as_generator(rng)
        theta = np.empty((len(self.tree), self.d))
        theta[0] = self.mean + psd_factor(self.root_cov) @ rng.standard_normal(self.d)
        for depth in range(1, self.tree.height + 1):
            nodes = self.tree.levels[depth]
            roots = np.array([psd_factor(cov) for cov in self.level_cov(depth)])
            noise = rng.standard_normal((nodes.stop - nodes.start, self.d, 1))
            theta[nodes] = theta[self.tree.parent[nodes]] + (roots @ noise)[..., 0]
        return theta
