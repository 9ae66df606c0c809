"""The certificate, its key and the authorities of clients, as an `ssl.SSLContext`.

Every load makes a new context, which has nothing of the old one: no certificate, no authority, no
session ticket. So a load that fails changes nothing, and connections that are open keep what they
have.

Left out: who loads when (`daemon`), and connections (`tls_connection`).
"""

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from durable_streamsd.config import Settings

__all__ = ["CertificateError", "Certificates"]

log = logging.getLogger(__name__)


class CertificateError(Exception):
    """The files cannot be used; one sentence that names the setting and the file."""


class Certificates:
    """The newest good context. Raises `CertificateError` when made."""

    def __init__(self, settings: Settings) -> None:
        self._certificate = settings.tls_certificate
        self._key = settings.tls_key or settings.tls_certificate
        self._client_ca = settings.tls_client_ca
        self.context = self._load()

    def reload(self) -> None:
        """Use what the files hold now, for new connections; if it is no good, log that."""
        try:
            self.context = self._load()
        except CertificateError as error:
            log.error("the old certificate stays in use: %s", error)

    def _load(self) -> ssl.SSLContext:
        self._check_certificate(_read("tls_certificate", self._certificate))
        self._check_key(_read("tls_key", self._key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateError(
                f"tls_key: the key in {self._key} is not that of the certificate in "
                f"{self._certificate} ({_reason(error)})"
            ) from None
        if self._client_ca:
            _read("tls_client_ca", self._client_ca)
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as error:
                raise CertificateError(
                    f"tls_client_ca: {self._client_ca} is not a PEM file of certificates "
                    f"({_reason(error)})"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _check_certificate(self, content: bytes) -> None:
        try:
            first, *_ = x509.load_pem_x509_certificates(content)
            begins, ends = first.not_valid_before_utc, first.not_valid_after_utc
        except Exception:  # as with keys below
            raise CertificateError(
                f"tls_certificate: {self._certificate} is not a PEM file of certificates"
            ) from None
        now = datetime.now(UTC)
        level = logging.INFO if begins <= now < ends else logging.WARNING
        log.log(
            level,
            "the TLS certificate in %s is valid from %s to %s",
            self._certificate,
            f"{begins:%Y-%m-%dT%H:%M:%SZ}",
            f"{ends:%Y-%m-%dT%H:%M:%SZ}",
        )

    def _check_key(self, content: bytes) -> None:
        # Here, because OpenSSL would ask for the passphrase on the terminal.
        try:
            load_pem_private_key(content, None)
        except TypeError:
            raise CertificateError(f"tls_key: {self._key} needs a passphrase: remove it") from None
        except Exception:  # whatever a damaged key is to the library
            raise CertificateError(
                f"tls_key: {self._key} is not a PEM file with a private key"
            ) from None


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CertificateError(f"{setting}: cannot read {path}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
