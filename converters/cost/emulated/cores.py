"""The ARM cores that qemu emulates here, as the runtimes see them."""

from __future__ import annotations

# The part number of each core in /proc/cpuinfo. ONNX Runtime reads that file, not only HWCAP: it crashes with the file
# of an x86 host, and uses missing instructions if the file names a newer core than the one that qemu emulates.
CORES = {"cortex-a53": "0xd03", "cortex-a72": "0xd08", "cortex-a76": "0xd0b"}  # Raspberry Pi 3, 4 and 5
_ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
FEATURES = {
    "cortex-a53": _ARMV8_0,
    "cortex-a72": _ARMV8_0,
    "cortex-a76": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
}


def cpuinfo(core: str) -> str:
    """``/proc/cpuinfo`` of a machine with two of these cores, in the format of Linux on arm64."""
    lines = (
        "BogoMIPS\t: 108.00",
        f"Features\t: {FEATURES[core]}",
        "CPU implementer\t: 0x41",
        "CPU architecture: 8",
        "CPU variant\t: 0x0",
        f"CPU part\t: {CORES[core]}",
        "CPU revision\t: 3",
    )
    return "\n".join("\n".join((f"processor\t: {number}", *lines, "")) for number in range(2)) + "\n"
