"""The fleet's certificate authority with a real mosquitto: who may do what, joining with a code, and revocation."""

import asyncio
import contextlib
import os
import signal
import time
from types import SimpleNamespace

import pytest

from device_agents.control.renewal import CertificateParts, CertificateRenewal, fits, mend_pair
from device_agents.control.renewal_rules import is_due
from device_agents.control.requests import RequestClient
from edgekit.demo.processes import CommandError, Processes
from edgekit.errors import ClockError, TransportError
from edgekit.identity.authority import Authority, generate_tls_key, make_request, parse_request, private_pem
from edgekit.mqtt import topics
from edgekit.mqtt.mosquitto import find_mosquitto
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.transport import MqttTransport
from edgekit.trust.keys import load_signer
from edgekit.waiting import within
from tests.simulators.mosquitto import free_port, running_mosquitto
from tests.simulators.shell import Shell

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
FLEET = "f1"
DAY = 86_400.0


class Site:
    """A fleet in one folder: authority, certificates, and the broker's configuration as the command writes it."""

    def __init__(self, folder, monkeypatch, capfd):
        monkeypatch.chdir(folder)
        self.folder, self.port, self.claim_port = folder, free_port(), free_port()
        self.url = f"mqtts://127.0.0.1:{self.port}"
        self.claim_url = f"mqtts://127.0.0.1:{self.claim_port}"
        broker, controller = folder / "broker", folder / "controller"
        (folder / "edgekit.toml").write_text(
            f'fleet = "{FLEET}"\nbroker = "{self.url}"\nbroker_ca = "{controller}/ca.pem"\napi = ""\n'
            f'broker_certificate = "{controller}/controller.pem"\nbroker_key = "{controller}/controller.key"\n'
        )
        self.shell = Shell(folder, monkeypatch, capfd)
        for line in (
            "registry init",
            "ca init",
            "ca broker 127.0.0.1 -o broker",
            "ca controller -o controller",
            f"broker config -o broker --folder {broker} --certificates {broker} --data {folder}/ --address 127.0.0.1 "
            f"--port {self.port} --claim-port {self.claim_port}",
        ):
            self.shell(f"edgekit {line}")
        for path in broker.iterdir():
            path.chmod(0o600)

    def broker(self):
        """The running broker, on the configuration that the command wrote."""
        config = (self.folder / "broker" / "mosquitto.conf").read_text()
        return running_mosquitto(self.folder, config, self.port, self.claim_port)

    def client(self, certificate=None, url="", suffix="", **options):
        """A client with the certificate of a folder: ``devices/pi-1/broker``, ``controller/controller``, or none."""
        files = {}
        if certificate:
            files = {
                "certificate": self.folder / f"{certificate}.pem{suffix}",
                "key": self.folder / f"{certificate}.key{suffix}",
            }
        ca = self.folder / "keys" / "fleet-ca.pem"
        quick = TransportOptions(backoff_seconds=0.1, publish_timeout_seconds=5)
        return MqttTransport(
            url or self.url, client_id=f"c{time.monotonic_ns()}", ca=ca, options=quick, **files, **options
        )


@pytest.fixture
def site(tmp_path, monkeypatch, capfd):
    return Site(tmp_path, monkeypatch, capfd)


@contextlib.asynccontextmanager
async def connected(*clients, seconds=20):
    for client in clients:
        await client.start()
    for client in clients:
        await client.wait_connected(seconds)
    try:
        yield
    finally:
        for client in clients:
            await client.stop()


async def refused(client, topic):
    """Whether the broker refuses to take a message."""
    try:
        await client.publish(topic, b"x", qos=1)
    except TransportError:
        return True
    return False


async def test_a_device_reaches_its_own_topics_and_no_others(site):
    """A user name in CONNECT changes nothing, and nobody enters without a certificate."""
    for name in ("pi-1", "pi-2"):
        site.shell(f"edgekit device enroll {name} --target raspberry-pi-4")
    with site.broker():
        controller = site.client("controller/controller")
        one, two = site.client("devices/pi-1/broker", username="controller"), site.client("devices/pi-2/broker")
        got = []
        async with connected(controller, one, two):
            await one.subscribe("#", lambda m: got.append(m.topic))
            mine = [topics.device(FLEET, "pi-1", k) for k in ("desired", "command", "reported")]
            mine += [topics.answer(FLEET, "pi-1"), topics.fleet_hints(FLEET), topics.broadcast(FLEET, "0" * 64)]
            others = [topics.device(FLEET, "pi-2", k) for k in topics.DEVICE_KINDS] + [topics.answer(FLEET, "pi-2")]
            others += [topics.request(FLEET, "blocks", "pi-1"), topics.claim_answer(FLEET, "aaaaaaaa")]
            for topic in others + mine:
                await controller.publish(topic, b"x", qos=1)
            written = [
                topics.device(FLEET, "pi-1", k) for k in ("reported", "presence", "event", "result", "telemetry")
            ]
            for topic in [*written, *(topics.request(FLEET, kind, "pi-1") for kind in topics.REQUEST_KINDS)]:
                assert not await refused(one, topic), topic
            forbidden = [topic.replace("pi-1", "pi-2") for topic in written]
            forbidden += [topics.request(FLEET, kind, "pi-2") for kind in topics.REQUEST_KINDS]
            forbidden += [*mine[:2], *mine[3:], topics.claim_answer(FLEET, "aaaaaaaa"), topics.claim(FLEET, "aaaaaaaa")]
            for topic in forbidden:
                assert await refused(one, topic), topic
            await asyncio.sleep(0.2)
        assert set(got) == set(mine)
        for stranger in (site.client(), site.client(username="controller", password="x")):
            with pytest.raises(TransportError):
                async with connected(stranger, seconds=2):
                    pass


async def test_a_list_that_a_clock_ahead_has_dated_shuts_nobody_out(site):
    """A list of revoked certificates that is not yet valid would make the broker refuse every client."""
    site.shell("edgekit device enroll pi-1 --target raspberry-pi-4")
    authority = Authority.load(site.folder / "keys")
    ahead = time.time() + 30 * DAY
    (site.folder / "broker" / "revoked.crl").write_text(authority.revocation_list([("1f", ahead)], ahead))
    with site.broker():
        async with connected(site.client("devices/pi-1/broker")):
            pass


def test_an_authority_signs_nothing_outside_its_own_life(site):
    """A clock in 1970, or in 2050, is an error with both times, and no certificate that nobody accepts."""
    authority = Authority.load(site.folder / "keys")
    request = parse_request(make_request(generate_tls_key(), "pi-1"), "pi-1")
    for now in (30.0, time.time() + 3700 * DAY):
        for sign in (
            lambda now=now: authority.issue_client(request, "pi-1", 90, now),
            lambda now=now: authority.issue_server(generate_tls_key().public_key(), ["localhost"], 90, now),
            lambda now=now: authority.revocation_list([], now),
        ):
            with pytest.raises(ClockError, match="the clock of this machine shows"):
                sign()


async def test_the_claim_listener_allows_claims_and_nothing_else(site):
    """A client without a certificate writes claims and reads their answers."""
    with site.broker():
        controller, guest = site.client("controller/controller"), site.client(url=site.claim_url)
        got, heard = [], []
        async with connected(controller, guest):
            await controller.subscribe(topics.claim(FLEET, "+"), lambda m: heard.append(m.topic))
            await guest.subscribe("#", lambda m: got.append(m.topic))
            claim, answer = topics.claim(FLEET, "aaaaaaaa"), topics.claim_answer(FLEET, "aaaaaaaa")
            assert not await refused(guest, claim)
            for topic in (answer, topics.device(FLEET, "pi-1", "reported"), topics.fleet_hints(FLEET)):
                assert await refused(guest, topic), topic
                await controller.publish(topic, b"x", qos=1)
            await asyncio.sleep(0.2)
        assert heard == [claim]
        assert got == [answer]


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


async def test_a_device_joins_with_a_code_runs_and_is_revoked(site):
    """Its keys are made on it; a code is for its quota; a revoked certificate gets no connection, a new code a new one.

    The operator's key for samples comes with the answer, so that `collect` works; a device can refuse it.
    """
    key = site.shell.json("edgekit collect --new-key --json")["public_key"]
    (site.folder / "edgekit.toml").open("a").write(f'sample_key = "{key}"\n')
    other = site.shell.json("edgekit device code --json")["code"]
    code = site.shell.json("edgekit device code --json --label site=north")["code"]
    processes = Processes(site.folder)
    join = f"edgekit-agent join {site.claim_url} --ca keys/fleet-ca.pem --target x86-64 --seconds 20"
    try:
        with site.broker() as broker:
            processes.start("controller", "edgekit controller run", ready="ready")
            processes.run(f"{join} --code {code} --id pi-9 -o pi-9")
            assert (site.folder / "pi-9" / "samples.pub").read_bytes() == (site.folder / key).read_bytes()
            processes.run(f"{join} --code {other} --id pi-6 -o pi-6 --no-samples")
            assert not (site.folder / "pi-6" / "samples.pub").exists()
            assert "sample_key" not in (site.folder / "pi-6" / "agent.toml").read_text()
            with pytest.raises(CommandError, match="used up"):
                processes.run(f"{join} --code {code} --id pi-8 -o pi-8")
            wrong = code[:-2] + ("AA" if code[-2:] != "AA" else "BB")
            with pytest.raises(CommandError, match="no controller"):
                processes.run(f"{join} --code {wrong} --id pi-7 -o pi-7".replace("20", "4"))
            with (site.folder / "pi-9" / "agent.toml").open("a") as file:
                file.write('http = "127.0.0.1:0"\n')
            processes.start("agent", "edgekit-agent run --config pi-9/agent.toml", ready=" ready at ")
            until(lambda: site.shell.json("edgekit device list --json")[-1]["online"])
            view = site.shell.json("edgekit device list --json")[-1]
            assert (view["device"], view["labels"], view["target"]) == ("pi-9", {"site": "north"}, "x86-64")
            site.shell("edgekit device command pi-9 collect --samples 5 --wait")
            site.shell("edgekit ca revoke pi-9 -o broker/revoked.crl")
            assert "revoked" in site.shell("edgekit ca list pi-9")[0]
            broker.send_signal(signal.SIGHUP)  # reads the list; nobody is disconnected
            until(lambda: "Reloading config" in (site.folder / "mosquitto.log").read_text())
            gone, fine = site.client("pi-9/broker"), site.client("controller/controller")
            async with connected(fine):
                with pytest.raises(TransportError):
                    async with connected(gone, seconds=2):
                        pass
            settings = (site.folder / "pi-9" / "agent.toml").read_bytes()
            code = site.shell.json("edgekit device code --json")["code"]
            processes.run(f"edgekit-agent join {site.claim_url} --code {code} --again -o pi-9 --seconds 20")
            async with connected(site.client("pi-9/broker")):
                assert (site.folder / "pi-9" / "agent.toml").read_bytes() == settings
            assert broker.poll() is None
    finally:
        processes.stop_all()


async def test_a_certificate_is_renewed_while_the_old_one_stays_until_the_new_one_has_connected(site):
    """The agent replaces its pair after a connection with it; with an old key or in quarantine it keeps the old one."""
    folder = site.folder / "devices" / "pi-1"
    (site.folder / "edgekit.toml").open("a").write("certificate_days = 1\n")
    site.shell("edgekit device enroll pi-1 --target x86-64")
    certificate, key = folder / "broker.pem", folder / "broker.key"
    before = certificate.read_bytes()
    processes = Processes(site.folder)
    with site.broker():
        processes.start("controller", "edgekit controller run", ready="ready")
        transport = site.client("devices/pi-1/broker")
        requests = RequestClient(transport, fleet=FLEET, device="pi-1")
        told, adopted, used = [], [], [before]

        async def probe(pem, private):
            async with connected(
                site.client(str(pem.relative_to(site.folder)).removesuffix(".pem.new"), suffix=".new")
            ):
                assert certificate.read_bytes() == used[-1]

        def renewal(clock, signer):
            events = SimpleNamespace(send=lambda *event: told.append(event))
            parts = CertificateParts(certificate, key, probe, lambda: adopted.append(1), check_seconds=0.5)
            return CertificateRenewal(
                "pi-1", FLEET, parts, requests=requests, signer=signer, events=events, clock=clock
            ).run()

        def clock(ahead):
            return SimpleNamespace(wall=lambda: time.time() + ahead, monotonic=time.monotonic)

        soon, behind = clock(20 * 3600), clock(-30 * 86400)
        own = load_signer(folder / "device.key")
        try:
            async with connected(transport):
                await requests.start()
                with pytest.raises(asyncio.TimeoutError):
                    await within(2, renewal(clock(0), own))
                assert (certificate.read_bytes(), told) == (before, [])  # not due
                site.shell("edgekit device quarantine pi-1")
                task = asyncio.create_task(renewal(soon, own))
                await _until(lambda: told)
                assert told[0][0] == "certificate-not-renewed"
                assert "quarantine" in told[0][3]
                site.shell("edgekit device quarantine pi-1 --end")
                await _until(lambda: adopted)
                await asyncio.sleep(2.0)
                task.cancel()
                assert fits(certificate, key)
                assert certificate.read_bytes() != before
                assert [one[0] for one in told[1:]] == ["certificate-renewed"], "a clock that is ahead asks once"
                assert "this clock is ahead" in told[1][3]
                used.append(certificate.read_bytes())
                os.utime(certificate, (behind.wall(), behind.wall()))
                with pytest.raises(asyncio.TimeoutError):
                    await within(1, renewal(behind, own))
                written = behind.wall() - 17 * 3600  # a certificate of one day, by a clock of a month ago
                os.utime(certificate, (written, written))
                task = asyncio.create_task(renewal(behind, own))
                await _until(lambda: len(adopted) == 2)
                task.cancel()
        finally:
            processes.stop_all()
    assert len(site.shell.json("edgekit ca list pi-1 --json")) >= 2


async def _until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def test_a_renewal_that_a_power_cut_interrupted_is_finished(tmp_path):
    """Between the key and the certificate, the new certificate beside the old one fits the key."""
    authority = Authority.create(tmp_path / "keys", "f", time.time())
    pairs = []
    for _ in range(2):
        key = generate_tls_key()
        issued = authority.issue_client(parse_request(make_request(key, "pi-1"), "pi-1"), "pi-1", 90, time.time())
        pairs.append((issued.pem.encode(), private_pem(key)))
    certificate, key = tmp_path / "broker.pem", tmp_path / "broker.key"
    certificate.write_bytes(pairs[0][0])
    key.write_bytes(pairs[1][1])
    (tmp_path / "broker.pem.new").write_bytes(pairs[1][0])
    assert not fits(certificate, key)
    mend_pair(certificate, key)
    assert fits(certificate, key)
    mend_pair(certificate, key)
    assert certificate.read_bytes() == pairs[1][0]


@pytest.mark.parametrize(("now", "due"), [(0.0, False), (159.0, False), (161.0, True), (500.0, True)])
def test_a_certificate_is_due_in_the_last_third_of_its_life(now, due):
    """A clock before its begin asks for nothing."""
    assert is_due(100.0, 190.0, now) is due
