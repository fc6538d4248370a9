"""Checks that all networks share."""


def positive(**numbers: int) -> None:
    """Refuse anything but positive integers.

    Args:
        numbers: Values by the names of their arguments.

    Raises:
        ValueError: If one is not a positive integer.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {number!r}")
