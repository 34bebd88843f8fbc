"""Certificates and keys: the server's own, with which it is known, and one for each site, by which it is let in.

The server's key and certificate are signed by an authority that is made for this federation alone. A site gets
``ca.pem``, by which it knows the server, and its own private key; the server keeps the sites' public keys.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medsaga import files

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"
PUBLIC = ".pub"
"""The end of a site's public key; its private key has its name and ``.key``."""
_DAYS = 825
"""For which certificates are good; longer ones are refused by some systems."""

_LONGEST_NAME = 64


def is_site_name(name: str) -> bool:
    """Whether a site may have a name: it is printed, and is part of the names of files."""
    fits = 0 < len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip()
    return fits and name[0] != "." and not set(name) & set("/\\:,")


def make_keys(out: Path, *, hosts: Sequence[str], sites: Sequence[str]) -> None:
    """Write the certificates of a server and the keys of its sites into a folder that does not exist.

    Args:
        out: the folder.
        hosts: the names and addresses by which the sites reach the server.
        sites: names.

    Raises:
        InputError: the folder exists or cannot be written.
    """
    files.require_new(out, "a folder for keys")
    out.mkdir(parents=True)
    authority = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medsaga federation")])
    root = _certificate(name, name, authority.public_key()).add_extension(x509.BasicConstraints(True, 0), critical=True)
    _write(out / AUTHORITY, root.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))
    server = ec.generate_private_key(ec.SECP384R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    certificate = _certificate(own, name, server.public_key()).add_extension(
        x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
    )
    _write(out / CERTIFICATE, certificate.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))
    _write(out / KEY, _private(server, serialization.PrivateFormat.PKCS8))
    for site in sites:
        key = ec.generate_private_key(ec.SECP384R1())
        _write(out / f"{site}.key", _private(key, serialization.PrivateFormat.OpenSSH))
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        _write(out / f"{site}{PUBLIC}", public + b"\n")


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Write a file that nobody else on the machine can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
