"""TLS 1.3 with a pinned key: no authority but the URI says who the service is.

Invariants: the client compares the SHA-256 of the server's public key (its SubjectPublicKeyInfo,
DER) with the fingerprint in the URI, in constant time, as part of the handshake: before that not a
byte of RPC is sent.  TLS itself proves that the server holds the private key of that public key.
Names, dates and issuers of certificates mean nothing here.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from capstore.schema.errors import Corrupt


def fingerprint_of(certificate: x509.Certificate) -> str:
    """base64url of the SHA-256 of the certificate's public key."""
    public_key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.urlsafe_b64encode(hashlib.sha256(public_key).digest()).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """The private key and self-signed certificate of a service, in one PEM file."""

    pem: bytes
    fingerprint: str

    @staticmethod
    def generate_pem() -> bytes:
        """A new P-256 key and a certificate for it."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "capstore")])
        start = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # The key is what is pinned; its certificate never expires (RFC 5280, 4.1.2.5).
            .not_valid_before(start)
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
            .sign(key, hashes.SHA256())
        )
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ) + certificate.public_bytes(serialization.Encoding.PEM)

    @staticmethod
    def from_pem(pem: bytes) -> ServiceKey:
        """Raises `Corrupt` for anything but what `generate_pem` gives."""
        try:
            return ServiceKey(pem, fingerprint_of(x509.load_pem_x509_certificate(pem)))
        except ValueError as error:
            raise Corrupt("service.pem in the state directory is damaged") from error

    def server_context(self) -> ssl.SSLContext:
        """What a server listens with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The ssl module loads keys from files only; this one is private and gone at once.
        with tempfile.TemporaryDirectory(prefix="capstore-") as folder:
            path = Path(folder) / "key.pem"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.pem)
            try:
                context.load_cert_chain(path)
            except ssl.SSLError as error:
                raise Corrupt("service.pem in the state directory is damaged") from error
        return context


def pinning_context(fingerprint: str) -> ssl.SSLContext:
    """What a client connects with: the handshake fails with `ssl.SSLError` for another key."""

    class PinnedConnection(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            if not hmac.compare_digest(_fingerprint_of_peer(self), fingerprint):
                raise ssl.SSLCertVerificationError("the service has another key than the URI says")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslobject_class = PinnedConnection
    return context


def _fingerprint_of_peer(connection: Any) -> str:
    der = connection.getpeercert(binary_form=True)
    if der is None:
        return ""
    try:
        return fingerprint_of(x509.load_der_x509_certificate(der))
    except ValueError:
        return ""
