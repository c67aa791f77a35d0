"""Checks the wheel and the sdist that `make dist` built: python -m tests.release.check dist

Needs a package index. All files are in a temporary folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import venv
import zipfile
from pathlib import Path

from edgekit import __version__
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.values import RolloutState
from edgekit.trust.keys import generate_key
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.small_models import SURE, onnx_bundle, softmax

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edgekit", "converters", "device_agents")
FOR_PACKAGERS = ("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "constraints/agent.txt", "pyproject.toml")
TARGET = "x86-64"
START_SECONDS = 120.0
# The caller's settings and the source tree must not influence the new environment.
ENV = {name: text for name, text in os.environ.items() if not name.startswith(("EDGEKIT_", "PYTHON", "VIRTUAL_ENV"))}


def main() -> None:
    """Check the wheel and the source distribution in a folder. An AssertionError names the fault."""
    folder = Path(sys.argv[1])
    check_contents(folder)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions(folder))], check=True)
    with tempfile.TemporaryDirectory(prefix="edgekit-release-") as home:
        check_installed(distributions(folder)[0], Path(home))
    print(f"edgekit {__version__} can be released")


def distributions(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution in a folder; the folder has exactly one of each."""
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def check_contents(folder: Path) -> None:
    """Both contain every file of the three packages and the licence, and have the version of the source."""
    wheel, source = distributions(folder)
    stem = f"edgekit-{__version__}"
    assert wheel.name == f"{stem}-py3-none-any.whl", wheel.name
    assert source.name == f"{stem}.tar.gz", source.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"{stem}.dist-info"
    packaged = {name for name in names if not name.startswith(f"{info}/")}
    assert packaged == source_files(), packaged ^ source_files()
    assert f"{info}/licenses/LICENSE" in names
    with tarfile.open(source) as packed:
        inside = {name.removeprefix(f"{stem}/") for name in packed.getnames()}
    missing = (source_files() | set(FOR_PACKAGERS)) - inside
    assert not missing, missing
    assert not {name for name in inside if name.startswith(("tests/", "benchmarks/", ".venv/"))}


def source_files() -> set[str]:
    """Every file of the three packages in the source tree, data files included."""
    paths = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def check_installed(wheel: Path, home: Path) -> None:
    """Install the wheel like on a device, without the source tree, and run its commands and an agent."""
    bin_folder = install(wheel, home / "environment")
    work = home / "work"
    work.mkdir()

    def run(*command: str) -> str:
        words = [str(bin_folder / command[0]), *command[1:]]
        return subprocess.run(words, cwd=work, env=ENV, check=True, capture_output=True, text=True, timeout=120).stdout

    where = run("python", "-c", "import edgekit, converters, device_agents as d; print(edgekit.__file__, d.__file__)")
    assert str(ROOT) not in where, where
    assert str(home) in where, where
    assert "Commands:" in run("edgekit", "--help")
    assert run("edgekit", "--version") == f"edgekit, version {__version__}\n"
    installed = run("python", "-c", "from importlib import metadata; print(metadata.version('edgekit'))")
    assert installed.strip() == __version__, installed
    assert "raspberry-pi-4" in run("edgekit", "targets")
    print(run("edgekit-agent", "--version", "--verbose"))
    asyncio.run(_first_answer(bin_folder / "edgekit-agent", work))


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment with the packages of a device. Returns the folder of its programs."""
    venv.create(folder, with_pip=False)
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", str(folder)]
    pins = ROOT / "constraints" / "agent.txt"
    subprocess.run([*uv, "--require-hashes", "-r", str(pins)], check=True, env=ENV)
    subprocess.run([*uv, "--no-deps", str(wheel.resolve())], check=True, env=ENV)
    return folder / "bin"


async def _first_answer(program: Path, folder: Path) -> None:
    """Roll out a small model to the installed agent over a private broker, and send it a request over HTTP."""
    onnx_bundle(folder / "bundle", target=TARGET)
    async with (
        await start_broker("127.0.0.1", 0, folder / "broker") as broker,
        ControlSide(folder, broker.url) as side,
    ):
        publish(side.store, side.repository, folder / "bundle")
        process = await _start_agent(program, folder / "device", side)
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), START_SECONDS)).decode()
            assert " ready at http://" in line, (folder / "device" / "agent.log").read_text(encoding="utf-8")[-2000:]
            side.start("small", "1.0.0", TARGET)
            await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
            answer = await asyncio.to_thread(_ask, line.split()[-1])
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            status = await process.wait()
    assert status == 0, status
    expected = softmax(SURE).ravel().tolist()
    assert max(abs(score - target) for score, target in zip(answer, expected, strict=True)) < 1e-5, answer
    print("the installed agent's first answer:", answer)


async def _start_agent(program: Path, folder: Path, side: ControlSide) -> asyncio.subprocess.Process:
    _enroll(folder, side)
    with (folder / "agent.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *(str(program), "run", "--config", str(folder / "agent.toml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=ENV,
        )


def _enroll(folder: Path, side: ControlSide) -> None:
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(side.root)
    (folder / "agent.toml").write_text(
        f'device = "pi-1"\nfleet = "{FLEET}"\ntarget = "{TARGET}"\nbroker = "{side.url}"\nhttp = "127.0.0.1:0"\n'
        "probation_seconds = 0.1\n",
        encoding="utf-8",
    )
    public_key = (folder / "device.pub").read_text(encoding="utf-8")
    side.state.devices.enroll(Device("pi-1", TARGET, public_key, enrolled=side.clock.wall()))


def _ask(url: str) -> list[float]:
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": SURE.ravel().tolist()}]}
    request = urllib.request.Request(f"{url}/v2/models/small/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs = json.load(answer)["outputs"]
    return next(output["data"] for output in outputs if output["name"] == "scores")


if __name__ == "__main__":
    main()
