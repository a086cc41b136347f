"""What each shipped profile is built from: the entries of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from dsd_env.latency.profile import Power

__all__ = [
    "CATALOGUE",
    "EdgeEntry",
    "Entry",
    "HeadEntry",
    "KernelEntry",
    "Link",
    "MeasuredEntry",
    "VllmEntry",
    "power_of",
]

_SLUGS = {
    "A100-SXM-80GB": "a100-sxm",
    "H100-SXM-80GB": "h100-sxm",
    "H200-SXM-141GB": "h200-sxm",
    "L40S-48GB": "l40s",
    "RTX-PRO-6000-96GB": "rtx-pro-6000",
    "RTX-4090-24GB": "rtx-4090",
}


@dataclass(frozen=True)
class Link:
    """An interconnect to derive all-reduces from, instead of the device's measured table.

    Attributes:
        kind: ``nvlink`` or ``pcie``.
        gigabytes_per_s: Bus bandwidth of a large all-reduce: 2 (n - 1) / n times its bytes over its time.
    """

    kind: str
    gigabytes_per_s: float


@dataclass(frozen=True)
class KernelEntry:
    """A profile fitted to sums of measured kernels or layers."""

    model: str
    device: str
    tp: int
    role: str
    link: Link | None = None

    def slug(self) -> str:
        """Name of the profile."""
        name = f"{self.model.lower()}_{_SLUGS[self.device]}_tp{self.tp}"
        return f"{name}_{self.link.kind}{self.link.gigabytes_per_s:g}" if self.link else name


@dataclass(frozen=True)
class HeadEntry(KernelEntry):
    """A draft head (EAGLE and its like) on the GPUs of its target."""


@dataclass(frozen=True)
class VllmEntry:
    """A kernel-sum profile corrected to the cost model of a real vLLM (8B on one H100)."""

    model: str = "Llama-3-8B"
    device: str = "H100-SXM-80GB"
    tp: int = 1

    def slug(self) -> str:
        """Name of the profile."""
        return f"{self.model.lower()}_{_SLUGS[self.device]}_tp{self.tp}_vllm"


@dataclass(frozen=True)
class MeasuredEntry:
    """A profile fitted to Splitwise's whole iterations of 2023."""

    model: str
    device: str
    tp: int

    def slug(self) -> str:
        """Name of the profile."""
        return f"{self.model.lower()}_{_SLUGS[self.device]}_tp{self.tp}_splitwise2023"


@dataclass(frozen=True)
class EdgeEntry:
    """A drafter profile from published tokens per second."""

    model: str
    quant: str
    device: str
    slug_device: str
    cls: str
    figures_of: tuple[str, ...]
    power: Power

    def slug(self) -> str:
        """Name of the profile."""
        bits = "int4" if self.quant in ("INT4", "W4A16", "int4 SpinQuant", "int4") else "q4"
        return f"{self.model.lower()}-{bits}_{self.slug_device}"


def power_of(idle: float, busy: float, label: str, note: str) -> Power:
    """Power of a profile; the label is checked."""
    return Power.model_validate({"idle_w": idle, "busy_w": busy, "label": label, "note": note})


_PHONE = power_of(
    0.6,
    7.0,
    "spec",
    "sustained package power of a flagship phone under CPU load, typical, not measured by us",
)
_M4 = power_of(
    4.0,
    30.1,
    "measured",
    "busy: 30.1 W at the wall while generating (geerlingguy/ai-benchmarks, Mac mini); idle: typical",
)
_M3_PRO = power_of(
    5.0,
    40.0,
    "spec",
    "busy: package power under GPU load, typical of the chip, not measured by us; idle: typical",
)
_M3_MAX = power_of(
    6.0,
    60.0,
    "spec",
    "busy: package power under GPU load, typical of the chip, not measured by us; idle: typical",
)
_ORIN_NANO = power_of(5.0, 25.0, "spec", "busy: the module's 25 W power mode; idle: typical")
_AGX_ORIN = power_of(10.0, 60.0, "spec", "busy: the module's 60 W maximum power mode; idle: typical")
_RTX_4090 = power_of(
    25.0,
    450.0,
    "spec",
    (
        "busy: board power limit, an upper bound (a whole PC drew 262 W while generating, "
        "geerlingguy/ai-benchmarks); idle: typical"
    ),
)
_RTX_4070_TI = power_of(15.0, 285.0, "spec", "busy: board power limit, an upper bound; idle: typical")
_PI_5 = power_of(
    3.0,
    11.9,
    "measured",
    "busy: 11.9 W at the wall while generating (geerlingguy/ai-benchmarks); idle: typical",
)

_RTX_3070_LAPTOP = power_of(
    10.0, 125.0, "spec", "busy: largest graphics power of the laptop part; idle: typical"
)
_RTX_3090 = power_of(25.0, 350.0, "spec", "busy: board power limit, an upper bound; idle: typical")
_M1 = power_of(4.0, 20.0, "spec", _M3_PRO.note)
_M1_MAX = power_of(6.0, 60.0, "spec", _M3_PRO.note)
_M2_PRO = power_of(5.0, 40.0, "spec", _M3_PRO.note)
_M2_MAX = power_of(6.0, 60.0, "spec", _M3_PRO.note)

_1B, _3B, _8B, _70B = "Llama-3.2-1B", "Llama-3.2-3B", "Llama-3-8B", "Llama-3-70B"
_L2_70B, _Q3_32B, _Q25_32B, _Q25_72B = "Llama-2-70B", "Qwen3-32B", "Qwen2.5-32B", "Qwen2.5-72B"
_Q3_A3B = "Qwen3-30B-A3B"
_A100, _H100, _H200, _L40S = "A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "L40S-48GB"
_PRO, _4090 = "RTX-PRO-6000-96GB", "RTX-4090-24GB"

# Model -> device -> tensor parallelism. Left out: what leaves no room for a KV cache, what the attention
# table lacks (20 query heads with 4 KV heads on A100: Qwen2.5-32B at tp 2), eight L40S (the measured
# all-reduce moves 1.1 GB/s over PCIe there: nobody would serve so), and RTX 4090 beyond its one measured
# model.
_TARGETS: dict[str, dict[str, tuple[int, ...]]] = {
    _70B: {_H100: (4, 2, 8), _A100: (4, 2, 8), _H200: (2, 4), _L40S: (4,), _PRO: (2, 4)},
    _L2_70B: {_H100: (2, 4, 8), _A100: (2, 4, 8)},
    _Q25_72B: {_H100: (2, 4), _A100: (2, 4), _H200: (2,), _L40S: (4,), _PRO: (2, 4)},
    _Q3_32B: {_H100: (1, 2), _A100: (1, 2), _H200: (1, 2), _L40S: (2, 4), _PRO: (1, 2)},
    _Q25_32B: {_H100: (1, 2), _A100: (1,), _H200: (1,), _L40S: (2, 4), _PRO: (1, 2)},
    _8B: {_H100: (1, 2), _H200: (1,), _A100: (1, 2), _4090: (1,), _PRO: (1, 2), _L40S: (2,)},
    _Q3_A3B: {_PRO: (1,)},
}
_DRAFTERS: dict[str, dict[str, tuple[int, ...]]] = {
    _8B: {_L40S: (1,), _H100: (4,), _A100: (4,)},
    _3B: {_H100: (1, 2), _A100: (1, 2), _L40S: (1,), _PRO: (1,)},
    _1B: {_H100: (1, 2, 4), _A100: (1, 2), _L40S: (1,), _PRO: (1,)},
}
# Heads run at the parallelism of the targets that they belong to.
_HEADS: dict[str, dict[str, tuple[int, ...]]] = {
    f"{family}-{model}": {_H100: degrees, _A100: degrees}
    for model, degrees in ((_8B, (1, 2)), (_70B, (2, 4, 8)))
    for family in ("EAGLE", "EAGLE3")
}
# Four L40S whose links are as fast as the measured one between two of them (the measured table of four has a
# topology that moves 2.5 GB/s).
_LINKED = (KernelEntry(_70B, _L40S, 4, "target", Link("pcie", 19.0)),)

# (device, slug, class, names in the figures, power, quantisation, models)
_EDGE: tuple[tuple[str, str, str, tuple[str, ...], Power, str, tuple[str, ...]], ...] = (
    (
        "Snapdragon-8-Gen-3-phone",
        "snapdragon-8-gen-3",
        "phone-cpu",
        ("OnePlus 12 (Snapdragon 8 Gen 3 CPU)",),
        _PHONE,
        "int4 SpinQuant",
        (_1B, _3B),
    ),
    (
        "Snapdragon-8-Gen-3-phone",
        "snapdragon-8-gen-3",
        "phone-cpu",
        ("OnePlus 12 (Snapdragon 8 Gen 3 CPU)",),
        _PHONE,
        "int4",
        (_8B,),
    ),
    ("Apple-M1", "apple-m1", "apple", ("Apple M1 7-core GPU 8GB",), _M1, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "Apple-M1-Max",
        "apple-m1-max",
        "apple",
        ("Apple M1 Max 32-core", "Apple M1 Max 64GB", "Apple M1 Max Mac Studio"),
        _M1_MAX,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    (
        "Apple-M2-Pro",
        "apple-m2-pro",
        "apple",
        ("Apple M2 Pro (mini 12/19)",),
        _M2_PRO,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    ("Apple-M2-Max", "apple-m2-max", "apple", ("Apple M2 Max 30-core",), _M2_MAX, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "Apple-M4",
        "apple-m4",
        "apple",
        ("Apple M4 10-core 16GB", "Apple M4 Mac mini 10-core 32GB"),
        _M4,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    ("Apple-M3-Pro", "apple-m3-pro", "apple", ("Apple M3 Pro 18-core",), _M3_PRO, "Q4_K_M", (_1B, _3B, _8B)),
    ("Apple-M3-Max", "apple-m3-max", "apple", ("Apple M3 Max 40-core",), _M3_MAX, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "Jetson-Orin-Nano-Super-8GB",
        "jetson-orin-nano-super",
        "jetson",
        ("Jetson Orin Nano Super 8GB",),
        _ORIN_NANO,
        "INT4",
        (_1B, _3B, _8B),
    ),
    (
        "Jetson-AGX-Orin-64GB",
        "jetson-agx-orin",
        "jetson",
        ("Jetson AGX Orin 64GB",),
        _AGX_ORIN,
        "W4A16",
        (_1B, _3B, _8B),
    ),
    (
        "RTX-4090-24GB",
        "rtx-4090",
        "rtx",
        ("NVIDIA RTX 4090 24GB", "NVIDIA RTX 4090 (265K PC)"),
        _RTX_4090,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    ("RTX-3090-24GB", "rtx-3090", "rtx", ("NVIDIA RTX 3090 24GB",), _RTX_3090, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "RTX-4070-Ti-12GB",
        "rtx-4070-ti",
        "rtx",
        ("NVIDIA RTX 4070 Ti 12GB",),
        _RTX_4070_TI,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    (
        "RTX-3070-laptop-8GB",
        "rtx-3070-laptop",
        "rtx",
        ("NVIDIA RTX 3070 mobile 8GB",),
        _RTX_3070_LAPTOP,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    (
        "Raspberry-Pi-5-16GB",
        "raspberry-pi-5",
        "cpu",
        ("Raspberry Pi 5 16GB",),
        _PI_5,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
)

Entry = KernelEntry | VllmEntry | MeasuredEntry | EdgeEntry


def _entries() -> list[Entry]:
    entries: list[Entry] = []
    for role, table in (("target", _TARGETS), ("drafter", _DRAFTERS)):
        for model, devices in table.items():
            for device, degrees in devices.items():
                entries += [KernelEntry(model, device, tp, role) for tp in degrees]
    for model, devices in _HEADS.items():
        for device, degrees in devices.items():
            entries += [HeadEntry(model, device, tp, "drafter") for tp in degrees]
    entries += _LINKED
    entries.append(VllmEntry())
    entries += [MeasuredEntry(_L2_70B, device, tp) for device in (_H100, _A100) for tp in (2, 4, 8)]
    for device, slug, cls, names, power, quant, models in _EDGE:
        entries += [EdgeEntry(model, quant, device, slug, cls, names, power) for model in models]
    return entries


CATALOGUE: dict[str, Entry] = {e.slug(): e for e in _entries()}
"""Profile name -> what it is built from."""
