"""Devices: speed, energy, RAM and the tiers behind it, as data files with their provenance."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from math import ceil, isfinite
from pathlib import Path
from typing import Any, final

SCHEMA = "repertory.poet.device/1"


class DeviceError(ValueError):
    """A device profile that lacks an entry, or holds an impossible one."""


@final
@dataclass(frozen=True)
class Tier:
    """A place behind RAM where a copy of a value can wait.

    Attributes:
        name: "flash", "host", "disk", "4-bit".
        read_latency: Seconds before the first byte arrives, each transfer.
        read_throughput: Bytes per second.
        write_latency: The same, to the tier.
        write_throughput: The same, to the tier.
        power: Watts while a transfer runs.
        capacity: Bytes; None where there is always room.
        block: Bytes are transferred in whole blocks of this size.
        duplex: Whether reads and writes run at the same time (a bus), or share one channel (an SD card).
        ratio: Bytes of a copy per byte of the value; below 1 for a compressed copy.
        in_ram: Whether copies lie in RAM themselves, as compressed copies do; the processor then makes them, so its
            time is spent and not a channel's.
        exact: Whether a copy comes back to the bit.
    """

    name: str
    read_latency: float
    read_throughput: float
    write_latency: float
    write_throughput: float
    power: float = 0.0
    capacity: int | None = None
    block: int = 1
    duplex: bool = False
    ratio: float = 1.0
    in_ram: bool = False
    exact: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("read_latency", "write_latency", "power"):
            number = getattr(self, name)
            if not (isfinite(number) and number >= 0):
                raise DeviceError(f"{name} of tier {self.name!r} must be finite and not negative, got {number}")
        for name in ("read_throughput", "write_throughput", "ratio"):
            number = getattr(self, name)
            if not number > 0:
                raise DeviceError(f"{name} of tier {self.name!r} must be positive, got {number}")
        if self.block < 1 or (self.capacity is not None and self.capacity < 0):
            raise DeviceError(
                f"tier {self.name!r} needs a block of at least 1 byte and a capacity of at least 0, "
                f"got {self.block} and {self.capacity}"
            )

    def stored(self, size: int) -> int:
        """Bytes that a copy of a value of `size` bytes takes: whole blocks."""
        return ceil(ceil(size * self.ratio) / self.block) * self.block

    def read_seconds(self, size: int) -> float:
        """Duration of bringing a value of `size` bytes back."""
        return self.read_latency + self.stored(size) / self.read_throughput

    def write_seconds(self, size: int) -> float:
        """Duration of copying a value of `size` bytes out."""
        return self.write_latency + self.stored(size) / self.write_throughput


@final
@dataclass(frozen=True)
class Device:
    """A machine that trains.

    Attributes:
        name: Short name; `Device.load(name)` finds the built-in ones.
        title: What it is.
        ram: Bytes of RAM; None if unknown.
        flops_per_second: Speed of computation; None if unknown (operations then need measured durations).
        flops_per_joule: Energy of computation; None if unknown.
        compute_power: Watts while computing; used for operations with a measured duration, and where
            `flops_per_joule` is unknown.
        tiers: Places behind RAM, nearest first.
        provenance: Where each figure comes from.
        missing: Entries that no source gives.
    """

    name: str
    title: str = ""
    ram: int | None = None
    flops_per_second: float | None = None
    flops_per_joule: float | None = None
    compute_power: float | None = None
    tiers: tuple[Tier, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict, compare=False)
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("flops_per_second", "flops_per_joule", "compute_power", "ram"):
            number = getattr(self, name)
            if number is not None and not (isfinite(number) and number > 0):
                raise DeviceError(f"{name} of device {self.name!r} must be finite and positive, got {number}")
        names = [tier.name for tier in self.tiers]
        if len(set(names)) < len(names) or "ram" in names:
            raise DeviceError(f"tiers of device {self.name!r} need different names other than 'ram', got {names}")

    def tier(self, name: str) -> Tier:
        """The tier of that name.

        Raises:
            DeviceError: If the device has none; the message names those that it has.
        """
        for tier in self.tiers:
            if tier.name == name:
                return tier
        has = ", ".join(repr(tier.name) for tier in self.tiers) or "none"
        raise DeviceError(f"device {self.name!r} has no tier {name!r}; it has {has}")

    def op_seconds(self, flops: float, seconds: float | None) -> float:
        """Duration of an operation: as measured, else FLOPs over speed.

        Raises:
            DeviceError: If neither is known.
        """
        if seconds is not None:
            return seconds
        if self.flops_per_second is None:
            raise self._lacks("flops_per_second", "operations without a measured duration")
        return flops / self.flops_per_second

    def op_joules(self, flops: float, seconds: float | None) -> float:
        """Modelled energy of an operation: power times measured duration, else FLOPs over FLOPs per joule.

        Raises:
            DeviceError: If neither is known.
        """
        if seconds is not None and self.compute_power is not None:
            return seconds * self.compute_power
        if self.flops_per_joule is not None:
            return flops / self.flops_per_joule
        if self.compute_power is not None:
            return self.op_seconds(flops, seconds) * self.compute_power
        raise self._lacks("flops_per_joule", "the energy of operations")

    def _lacks(self, entry: str, purpose: str) -> DeviceError:
        return DeviceError(
            f"the profile of {self.name!r} has no {entry}, which {purpose} need; give one "
            f"with `dataclasses.replace(device, {entry}=...)` or in its file, or ask for objective='time'"
        )

    @staticmethod
    def load(name: str | Path) -> "Device":
        """A built-in device by name, or a device file by path.

        Args:
            name: One of `Device.names()`, or the path of a JSON file that `save` wrote.

        Raises:
            DeviceError: If there is no such device, or the file is not a device's.
        """
        built_in = resources.files("poet") / "devices" / f"{name}.json"
        path = Path(name)
        if built_in.is_file():
            text = built_in.read_text(encoding="utf-8")
        elif path.suffix == ".json" and path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise DeviceError(f"{name} is not a text file: {error}") from None
        else:
            known = ", ".join(Device.names())
            raise DeviceError(f"no device {str(name)!r}: give one of {known}, or the path of a .json profile")
        try:
            return Device.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise DeviceError(f"{name} is not JSON: {error}") from None

    @staticmethod
    def names() -> list[str]:
        """Names of the built-in devices."""
        folder = resources.files("poet") / "devices"
        return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON holds it."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_json(content: Any) -> "Device":
        """The profile that `to_json` gave.

        Raises:
            DeviceError: If the content is not a profile of this schema.
        """
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            got = content.get("schema") if isinstance(content, dict) else type(content).__name__
            raise DeviceError(f"a device profile has the schema {SCHEMA!r}, got {got!r}")
        entries = {key: value for key, value in content.items() if key != "schema"}
        unknown = sorted(set(entries) - {f.name for f in fields(Device)})
        if unknown:
            raise DeviceError(f"unknown entries in a device profile: {', '.join(unknown)}")
        try:
            tiers = tuple(Tier(**tier) for tier in entries.pop("tiers", ()))
            missing = tuple(entries.pop("missing", ()))
            return Device(**entries, tiers=tiers, missing=missing)
        except TypeError as error:
            raise DeviceError(f"not a device profile: {error}") from None

    def with_tiers(self, *tiers: Tier) -> "Device":
        """The same device with other tiers."""
        return replace(self, tiers=tuple(tiers))
