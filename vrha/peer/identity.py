"""Who an agent is to other agents: a key and a self-signed certificate for one life of it."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from vrha.errors import InputError

__all__ = ["Identity", "der"]

_MAX_COMMON_NAME = 64
"""ub-common-name, RFC 5280 appendix A.1."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`certificate` (PEM) is for everyone; the key never leaves the memory of this process."""

    certificate: str
    _key: bytes = field(repr=False)

    @classmethod
    def new(cls, name: str) -> Identity:
        """A fresh P-256 key; `name` is for people who look at the certificate.

        Valid from yesterday for ten years: trust ends with the agent's life, not by the clock.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_MAX_COMMON_NAME])])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=3650))
            # It vouches for itself only.
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(certificate.public_bytes(Encoding.PEM).decode("ascii"), pem)

    def server_context(self, peer: bytes) -> ssl.SSLContext:
        """For accepting `peer` (a certificate in DER)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Nobody resumes a session; tickets would only be written and thrown away.
        context.num_tickets = 0
        return self._pinned(context, peer)

    def client_context(self, peer: bytes) -> ssl.SSLContext:
        """For calling `peer` (a certificate in DER)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The certificate itself is compared; its name means nothing.
        context.check_hostname = False
        return self._pinned(context, peer)

    def _pinned(self, context: ssl.SSLContext, peer: bytes) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
        context.load_verify_locations(cadata=peer)
        # OpenSSL wants a file; this one has no name and is gone when it is closed.
        with open(os.memfd_create("identity"), "wb", buffering=0) as file:
            file.write(self._key + self.certificate.encode("ascii"))
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return context


def der(certificate: str) -> bytes:
    """A PEM certificate as its bytes. Raises InputError (`peer-certificate`)."""
    try:
        if certificate.count("-----BEGIN") != 1:
            raise ValueError("several parts, or none")
        found = x509.load_pem_x509_certificate(certificate.encode("ascii"))
    except ValueError as error:
        raise InputError(
            "peer-certificate",
            f"not one certificate in PEM: {error}",
            "It is the `certificate` of the other agent's identity, as that one told it.",
        ) from error
    return found.public_bytes(Encoding.DER)
