"""Finding the claims of the installed packages, and choosing among them."""

import difflib
import fnmatch
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common_core.claims._claim import Claim, ClaimError

GROUP = "repertory.claims"


@dataclass(frozen=True)
class Found:
    """A claim and where it was found.

    Attributes:
        claim: The claim.
        entry: ``module:attribute`` of the tuple that holds it, by which another process finds it again.
    """

    claim: Claim
    entry: str


def discover(entries: Iterable[importlib.metadata.EntryPoint] | None = None) -> dict[str, Found]:
    """The claims of every installed package.

    Args:
        entries: Entry points to look through; those of the group ``repertory.claims`` by default.

    Returns:
        Claim id to claim, sorted by id.

    Raises:
        ClaimError: An entry point that does not load or holds something else, or an id that two claims share.
    """
    found: dict[str, Found] = {}
    points = importlib.metadata.entry_points(group=GROUP) if entries is None else entries
    for point in sorted(points, key=lambda item: (item.name, item.value)):
        for claim in _load(point):
            if claim.id in found:
                where = sorted({found[claim.id].entry, point.value})
                raise ClaimError(f"two claims have the id {claim.id!r} (in {' and '.join(where)}): rename one")
            found[claim.id] = Found(claim, point.value)
    return dict(sorted(found.items()))


def _load(point: importlib.metadata.EntryPoint) -> Sequence[Claim]:
    try:
        claims = point.load()
    except Exception as error:
        raise ClaimError(
            f"the claims of {point.name!r} ({point.value}) do not load: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(claims, (tuple, list)) or not all(isinstance(claim, Claim) for claim in claims):
        raise ClaimError(f"{point.value} must be a tuple of Claim; it is {type(claims).__name__}")
    return claims


def select(found: Mapping[str, Found], selectors: Sequence[str]) -> dict[str, Found]:
    """The claims that the selectors name; all of them when there are none.

    Args:
        found: As :func:`discover` returns it.
        selectors: Package names, claim ids, or patterns with ``*`` and ``?``.

    Returns:
        Claim id to claim, sorted by id.

    Raises:
        ClaimError: No claims at all, or a selector that names nothing; near matches are listed.
    """
    if not found:
        raise ClaimError("no claims are installed: install a package that carries some, such as hieropo[claims]")
    chosen: set[str] = set()
    packages = sorted({item.claim.package for item in found.values()})
    for selector in selectors or ["*"]:
        matches = [
            key for key, item in found.items() if selector == item.claim.package or fnmatch.fnmatchcase(key, selector)
        ]
        if not matches:
            names = [*packages, *found]
            near = difflib.get_close_matches(selector, names, n=4, cutoff=0.4)
            near += [name for name in names if selector and selector in name and name not in near][:4]
            hint = f"did you mean {', '.join(near)}?" if near else f"known packages: {', '.join(packages)}"
            raise ClaimError(f"no claim matches {selector!r}; {hint} (`repertory list` shows all)")
        chosen.update(matches)
    return {key: found[key] for key in found if key in chosen}
