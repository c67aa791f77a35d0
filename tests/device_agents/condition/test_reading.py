"""The condition of this machine, and of folders that look like /sys and /proc of boards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from device_agents.accelerators import find_accelerators
from device_agents.condition.reading import read_condition
from device_agents.condition.rules import Condition

PI = "sys/devices/platform/soc/soc:firmware/get_throttled"


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_machine_tells_its_uptime_and_free_space(tmp_path: Path) -> None:
    """The values are those of the system."""
    found = read_condition(tmp_path)
    assert found.uptime_hours == int(float(Path("/proc/uptime").read_text().split()[0])) // 3600
    free = os.statvfs(tmp_path)
    assert abs(found.disk_free_mib - free.f_bavail * free.f_frsize // 2**20) < 500
    assert 0 < found.memory_free_mib <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


@pytest.mark.parametrize(
    ("flags", "now", "since"),
    [
        ("0", "no", "no"),
        ("50005", "under-voltage,throttled", "under-voltage,throttled"),
        ("0x20002", "frequency-capped", "frequency-capped"),
        ("80000", "no", "soft-temperature-limit"),
    ],
)
def test_flags_of_a_raspberry_pi(tmp_path: Path, flags: str, now: str, since: str) -> None:
    """Bits 0 to 3 are now, bits 16 to 19 since the boot; with and without 0x."""
    write(tmp_path, **{PI: f"{flags}\n"})
    found = read_condition(tmp_path, root=tmp_path)
    assert (found.throttled, found.throttled_since_boot) == (now, since)


def test_the_warmest_zone_counts_and_broken_sensors_do_not(tmp_path: Path) -> None:
    """Thousandths of a degree; sensors that show nothing, text, less than zero or far too much are left out."""
    zone = "sys/class/thermal/thermal_zone{}/temp"
    for number, text in enumerate(["41000", "54321", "-274000", "200000", "hot", ""]):
        write(tmp_path, **{zone.format(number): text})
    assert read_condition(tmp_path, root=tmp_path).temperature_celsius == 54


def test_cooling_by_a_lower_frequency_is_throttling(tmp_path: Path) -> None:
    """Of the cooling devices, only those that lower the frequency count: a fan slows nothing down."""
    fan, cpu = (f"sys/class/thermal/cooling_device{number}/" for number in (0, 1))
    write(tmp_path, **{f"{fan}type": "pwm-fan", f"{fan}cur_state": "3"})
    assert read_condition(tmp_path, root=tmp_path).throttled == ""
    write(tmp_path, **{f"{cpu}type": "cpufreq-cpu0", f"{cpu}cur_state": "0"})
    assert read_condition(tmp_path, root=tmp_path).throttled == "no"
    write(tmp_path, **{f"{cpu}cur_state": "2"})
    assert read_condition(tmp_path, root=tmp_path).throttled == "frequency-capped"


def test_damaged_and_missing_files_count_as_unknown(tmp_path: Path) -> None:
    """Nothing is raised, whatever /sys and /proc hold, and a missing state folder has no free space."""
    assert read_condition(tmp_path / "none", root=tmp_path) == Condition()
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").mkdir(parents=True)
    write(tmp_path, **{PI: "zz", "proc/uptime": "soon", "proc/meminfo": "MemAvailable:\nMemFree: 1 kB"})
    assert read_condition(tmp_path / "none", root=tmp_path) == Condition()


def test_timesyncd_tells_that_the_clock_is_synchronised(tmp_path: Path) -> None:
    """Its file counts where the kernel may not be asked."""
    write(tmp_path, **{"run/systemd/timesync/synchronized": ""})
    assert read_condition(tmp_path, root=tmp_path).clock_synchronised is True


def test_accelerators_are_found_by_their_drivers(tmp_path: Path) -> None:
    """PCIe and USB accelerators, each once."""
    assert find_accelerators(tmp_path) == ()
    usb = "sys/bus/usb/devices/{}/"
    write(tmp_path, **{"sys/class/apex/apex_0": "", "dev/apex_0": "", "sys/module/galcore/refcnt": "0"})
    write(tmp_path, **{usb.format("1-1") + "idVendor": "03E7\n", usb.format("1-1") + "idProduct": "2485\n"})
    write(tmp_path, **{usb.format("1-2") + "idVendor": "18d1\n", usb.format("1-2") + "idProduct": "9302\n"})
    assert find_accelerators(tmp_path) == ("coral-edgetpu", "movidius", "vivante-npu")
    (tmp_path / usb.format("1-2") / "idProduct").unlink()
    assert "coral-edgetpu" in find_accelerators(tmp_path), "a USB device without a product id hides nothing else"
