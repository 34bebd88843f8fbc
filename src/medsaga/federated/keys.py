"""Certificates and keys: the server's own, with which it is known, and one for each site, by which it is let in.

The server's key and certificate are signed by an authority that is made for this federation alone. A site gets
``ca.pem``, by which it knows the server, and its own private key; the server keeps the sites' public keys.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medsaga import files
from medsaga.errors import InputError

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"
PUBLIC = ".pub"
"""The end of a site's public key; its private key has its name and ``.key``."""
_DAYS = 825
"""For which certificates are good; longer ones are refused by some systems."""

_LONGEST_NAME = 60
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_WHAT = "a folder for keys"


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
        InputError: a name or an address is none, or the folder exists or cannot be written; nothing has been written.
    """
    _require_site_names(sites)
    alternatives = x509.SubjectAlternativeName([_host(host) for host in hosts])
    files.require_new(out, _WHAT)
    authority = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medsaga federation")])
    root = _certificate(name, name, authority.public_key()).add_extension(x509.BasicConstraints(True, 0), critical=True)
    server = ec.generate_private_key(ec.SECP384R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medsaga server")])
    certificate = _certificate(own, name, server.public_key()).add_extension(alternatives, critical=False)
    with files.making_folder(out, _WHAT, "Choose another --out.") as folder:
        for file, signed in ((AUTHORITY, root), (CERTIFICATE, certificate)):
            _write(folder / file, signed.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))
        _write(folder / KEY, _private(server, serialization.PrivateFormat.PKCS8))
        for site in sites:
            key = ec.generate_private_key(ec.SECP384R1())
            _write(folder / f"{site}.key", _private(key, serialization.PrivateFormat.OpenSSH))
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            _write(folder / f"{site}{PUBLIC}", public + b"\n")


def _require_site_names(sites: Sequence[str]) -> None:
    """Make sure that every site has a name of its own, of which its files can have theirs.

    Raises:
        InputError: naming the one that has not.
    """
    wrong = [site for site in sites if not is_site_name(site)]
    known = ["ca", "server"]
    for site in sites:
        # Where a file system ignores case, two names that differ in it are one file.
        wrong += [site] if site.casefold() in known else []
        known.append(site.casefold())
    if wrong or not sites:
        names = f"names that differ, of at most {_LONGEST_NAME} letters, without / \\ : and , and not server or ca"
        found = ", ".join(map(repr, wrong)) or "none"
        raise InputError("--sites", expected=names, found=found, do="Give each site a name, as north,south.")


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
    """Return how a certificate names a host.

    Raises:
        InputError: it is neither an address nor a name.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        # In the form in which a name with other letters is looked up: xn--klinik-mnchen-3ob.de.
        name = host.encode("idna").decode()
    except UnicodeError:
        name = ""
    if not _HOST.fullmatch(name):
        do = "Give them as federation.example.org,192.0.2.7."
        raise InputError("--host", expected="names and addresses of the server", found=repr(host), do=do)
    return x509.DNSName(name)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Write a file that nobody else on the machine can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
