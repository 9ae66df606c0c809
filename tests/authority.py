"""A certificate authority for tests, and the files that a daemon or a client is given."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

LANES = ["express", "general", "TLS"]
"""The ways into the daemon, as parameters of tests; TLS is in front of the express lane."""


class Authority:
    """Signs certificates for 127.0.0.1 and localhost; its own is in `ca`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = _begun(self._name, self._name, self._key, timedelta(days=1))
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        own = own.add_extension(usage, critical=True)
        own = own.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
        )
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(
        self, name: str, passphrase: bytes = b"", lasts: timedelta = timedelta(days=1)
    ) -> tuple[Path, Path]:
        """A certificate and its key, as files that are replaced if they are there."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _begun(subject, self._name, key, lasts)
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
            critical=False,
        )
        signed = builder.sign(self._key, hashes.SHA256())
        certificate_file = self.folder / f"{name}.crt"
        key_file = self.folder / f"{name}.key"
        certificate_file.write_bytes(signed.public_bytes(Encoding.PEM))
        closed: KeySerializationEncryption = NoEncryption()
        if passphrase:
            closed = BestAvailableEncryption(passphrase)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, closed))
        return certificate_file, key_file

    def client_context(self, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client needs that trusts this authority; `own` is what it shows itself."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if own is not None:
            context.load_cert_chain(*own)
        return context


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + lasts)
    )


def tls_settings(files: tuple[Path, Path], client_ca: Path | None = None) -> dict[str, str]:
    """The environment that makes a daemon speak TLS."""
    settings = {
        "DURABLE_STREAMSD_TLS_CERTIFICATE": str(files[0]),
        "DURABLE_STREAMSD_TLS_KEY": str(files[1]),
    }
    if client_ca is not None:
        settings["DURABLE_STREAMSD_TLS_CLIENT_CA"] = str(client_ca)
    return settings


def careless_context() -> ssl.SSLContext:
    """What a client needs that believes everybody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def lane_settings(lane: str, folder: Path) -> dict[str, str]:
    """The environment for a daemon all of whose connections start in a lane.

    Certificates go to the folder.
    """
    settings = {"DURABLE_STREAMSD_EXPRESS_LANE": "off" if lane == "general" else "on"}
    if lane == "TLS":
        settings |= tls_settings(Authority(folder).issue("server"))
    return settings
