"""A lambda that goes as far as diversity carries over to data that is not trained on."""

from collections.abc import Mapping
from typing import Any, SupportsFloat, final

from dncc.checks import checked_fraction, checked_lambda
from dncc.collusion import Collusion, collusion_between
from dncc.controllers import LambdaController
from dncc.outputs import Measured

__all__ = ["GuardedLambda"]


@final
class GuardedLambda(LambdaController):
    """Lowers lambda when members collude, and raises it again slowly when they do not.

    After every epoch the share of the ensemble's generalisation gap that diversity is to blame for (`Collusion.share`)
    is averaged over epochs. Above `tolerance` lambda is multiplied by `fall`; else `rise` is added. As the share itself
    grows with lambda, lambda settles about where the share is `tolerance`.

    Args:
        start: First lambda, in [0, 1].
        tolerance: Share above which lambda falls, in (0, 1).
        fall: Factor of a fall, in [0, 1).
        rise: What is added in an epoch without collusion; 0: never raised again.
        minimum: Least lambda.
        maximum: Greatest lambda.
        smoothing: Weight of the past in the moving average of the share, in [0, 1).
        wait: Epochs in which nothing is changed: early on, members have learnt nothing that could carry over.
        floor: Nats below which a generalisation gap counts as this.

    Raises:
        ValueError: If a number is outside its range, or `minimum > maximum`.

    Reference:
        The signal is that of Jeffares et al. (2023), NeurIPS, made exact for cross-entropy; the controller is ours.

    Example:
        >>> from dncc import GuardedLambda, Measured
        >>> guard = GuardedLambda(start=1.0, wait=0)
        >>> train, validation = Measured(0.83, 0.42, 0.41), Measured(1.06, 0.80, 0.26)
        >>> round(guard.observe(train, validation), 2), round(guard.last.share, 2)
        (0.8, 0.39)
    """

    watches = True

    def __init__(
        self,
        start: SupportsFloat = 0.5,
        *,
        tolerance: SupportsFloat = 0.2,
        fall: SupportsFloat = 0.8,
        rise: SupportsFloat = 0.01,
        minimum: SupportsFloat = 0.0,
        maximum: SupportsFloat = 1.0,
        smoothing: SupportsFloat = 0.5,
        wait: int = 3,
        floor: SupportsFloat = 0.02,
    ) -> None:
        super().__init__(start)
        self.tolerance, self.fall = checked_fraction(tolerance, "tolerance"), checked_fraction(fall, "fall")
        self.rise, self.smoothing = checked_fraction(rise, "rise"), checked_fraction(smoothing, "smoothing")
        self.minimum, self.maximum = checked_lambda(minimum, "minimum"), checked_lambda(maximum, "maximum")
        if not 0 < self.tolerance < 1 or self.fall == 1 or self.smoothing == 1:
            raise ValueError(f"tolerance is {self.tolerance}, fall {self.fall} and smoothing {self.smoothing}; "
                             "tolerance must be inside (0, 1), fall and smoothing below 1")  # fmt: skip
        if self.minimum > self.maximum or not self.minimum <= self.value <= self.maximum:
            raise ValueError(f"start is {self.value}; it must lie between minimum {self.minimum} and maximum "
                             f"{self.maximum}")  # fmt: skip
        if wait < 0 or not float(floor) > 0:
            raise ValueError(f"wait is {wait} and floor {floor}; wait counts epochs and floor is positive")
        self.wait, self.floor = wait, float(floor)
        self.epochs, self.share = 0, 0.0
        self.last = Collusion(0.0, 0.0)

    def step(self) -> float:
        """Changes nothing: the guard acts on epochs.

        Returns:
            lambda.
        """
        return self.value

    def observe(self, train: Measured, validation: Measured) -> float:
        """Moves lambda after an epoch.

        Args:
            train: The decomposition on training data; best measured in evaluation mode, as the validation data.
            validation: The same on data that is not trained on.

        Returns:
            lambda for the next epoch.

        Raises:
            ValueError: If a number is not finite.
        """
        self.last = collusion_between(train, validation, self.floor)
        self.epochs += 1
        keep = self.smoothing if self.epochs > 1 else 0.0
        self.share = keep * self.share + (1 - keep) * self.last.share
        if self.epochs > self.wait:
            moved = self.value * self.fall if self.share > self.tolerance else self.value + self.rise
            self.set(min(self.maximum, max(self.minimum, moved)))
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """Lambda, epochs seen and the averaged share.

        Returns:
            A dictionary.
        """
        return {"lam": self.value, "epochs": self.epochs, "share": self.share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there.

        Args:
            state: From `state_dict`.
        """
        self.set(state["lam"])
        self.epochs, self.share = int(state["epochs"]), float(state["share"])
