"""TLS 1.3 with a pinned key: no authority but the URI says who the service is.

Invariants: the client compares the SHA-256 of the server's public key (its SubjectPublicKeyInfo,
DER) with the fingerprint in the URI, in constant time, as part of the handshake: before that not a
byte of RPC is sent.  TLS itself proves that the server holds the private key of that public key.
Names, dates and issuers of certificates mean nothing here.

A service may have old keys beside its own, each until a date.  A client that meets another key than
its URI says tries once more and says by SNI (RFC 6066) which one it wants, as ``key_name`` writes
it; whoever says nothing, or an unknown name, gets the service's own.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import re
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from capstore.schema.errors import Corrupt, InvalidArgument, TooLarge
from capstore.schema.limits import SERVICE_KEYS_OLD_MAX

_KEY_DOMAIN = ".key.capstore.invalid"
_UNTIL = re.compile(rb"^until (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\n", re.MULTILINE)
_UNTIL_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_BLOCK = rb"-----BEGIN %s-----\n(?:[A-Za-z0-9+/=]{1,64}\n)+-----END %s-----\n"  # RFC 7468, strict
_KEY_AND_CERTIFICATE = re.compile(
    _BLOCK % ((b"PRIVATE KEY",) * 2) + _BLOCK % ((b"CERTIFICATE",) * 2)
)
_NS = 1_000_000_000
# What reading a forged certificate raises.
_NO_CERTIFICATE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


def fingerprint_of(certificate: x509.Certificate) -> str:
    """base64url of the SHA-256 of the certificate's public key."""
    return _fingerprint(certificate.public_key())


def _fingerprint(key: CertificatePublicKeyTypes) -> str:
    public_key = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.urlsafe_b64encode(hashlib.sha256(public_key).digest()).rstrip(b"=").decode()


def key_name(fingerprint: str) -> str:
    """The name by which a client asks for the key of this fingerprint: its digest in base32, for
    names in DNS are of 63 bytes at most, and their case may be lost."""
    digest = base64.urlsafe_b64decode(fingerprint + "=")
    return base64.b32encode(digest).rstrip(b"=").decode().lower() + _KEY_DOMAIN


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A private key and its self-signed certificate, as PEM.

    An old one is presented `until` then, in ns since 1970; 0 is for ever.
    """

    pem: bytes
    fingerprint: str
    until: int = 0

    @staticmethod
    def generate_pem() -> bytes:
        """A new P-256 key and a certificate for it."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "capstore")])
        # For TLS libraries that insist on the name that was asked for, KJ's for one.
        asked_for = x509.DNSName(key_name(_fingerprint(key.public_key())))
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
            .add_extension(x509.SubjectAlternativeName([asked_for]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ) + certificate.public_bytes(serialization.Encoding.PEM)

    @staticmethod
    def from_pem(pem: bytes, until: int = 0) -> ServiceKey:
        """Raises `Corrupt` for anything but what `generate_pem` gives."""
        try:
            if not _KEY_AND_CERTIFICATE.fullmatch(pem):
                raise ValueError("not a key and a certificate")
            return ServiceKey(pem, fingerprint_of(x509.load_pem_x509_certificate(pem)), until)
        except _NO_CERTIFICATE as error:
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


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """The key that a service puts into its URIs, and `old` ones that other URIs still pin."""

    current: ServiceKey
    old: tuple[ServiceKey, ...] = ()

    @staticmethod
    def from_pem(pem: bytes) -> ServiceKeys:
        """Reads the file ``service.pem``.  Raises `Corrupt`."""
        first, *rest = _UNTIL.split(pem)
        old = tuple(
            ServiceKey.from_pem(part, _until_of(date.decode()))
            for date, part in zip(rest[::2], rest[1::2], strict=True)
        )
        return ServiceKeys(ServiceKey.from_pem(first), old)

    def to_pem(self) -> bytes:
        """The content of the file ``service.pem``."""
        parts = [b"until %s\n%s" % (_until_text(key.until).encode(), key.pem) for key in self.old]
        return self.current.pem + b"".join(parts)

    def rotated(self, keep_until: int, now: int) -> ServiceKeys:
        """A new key, and the one before among the old ones until `keep_until`; times are in ns.

        With 0, no URI that pins an old key works any more, whatever was said before.  Raises
        `InvalidArgument` for a time that is over and `TooLarge` over `SERVICE_KEYS_OLD_MAX`.
        """
        current = ServiceKey.from_pem(ServiceKey.generate_pem())
        if not keep_until:
            return ServiceKeys(current)
        keep_until -= keep_until % _NS
        if not now < keep_until < _UNTIL_MAX:
            raise InvalidArgument("an old key is kept until a time to come, before the year 10000")
        old = tuple(key for key in self.old if key.until > now)
        if len(old) >= SERVICE_KEYS_OLD_MAX:
            raise TooLarge(f"a service has at most {SERVICE_KEYS_OLD_MAX} old keys")
        return ServiceKeys(current, (replace(self.current, until=keep_until), *old))

    def server_context(self, clock: Callable[[], int] = time.time_ns) -> ssl.SSLContext:
        """What a server listens with: it presents the key that the client asks for."""
        context = self.current.server_context()
        others = {key_name(key.fingerprint): (key, key.server_context()) for key in self.old}

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            key, other = others.get((name or "").lower(), (None, context))
            if key is not None and clock() < key.until:
                connection.context = other

        if others:
            context.sni_callback = choose
        return context


_UNTIL_MAX = 253_402_300_800 * _NS


def _until_of(text: str) -> int:
    """Raises `Corrupt` for what is no time."""
    try:
        time_of = datetime.datetime.strptime(text, _UNTIL_FORMAT).replace(tzinfo=datetime.UTC)
        return int(time_of.timestamp()) * _NS
    except ValueError as error:
        raise Corrupt("service.pem in the state directory is damaged") from error


def _until_text(until: int) -> str:
    return datetime.datetime.fromtimestamp(until // _NS, datetime.UTC).strftime(_UNTIL_FORMAT)


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
    except _NO_CERTIFICATE:
        return ""
