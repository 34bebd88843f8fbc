"""Keys and certificates: what is written, and that nothing is where a name is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from medsaga.cli import main


def made(out: Path, *options: str) -> int:
    """Run the verb."""
    return main(["federate", "keys", "--out", str(out), *options])


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        ("../../evil", "found '../../evil'"),
        ("a/b,c", "found 'a/b'"),
        ("north,north", "found 'north'"),
        ("north,North", "found 'North'"),
        ("server", "found 'server'"),
        ("north,CA", "found 'CA'"),
        ("north,south,", "found ''"),
        ("", "found ''"),
        ("north,.south", "found '.south'"),
        ("n\x1border", "found 'n"),
    ],
)
def test_a_name_that_cannot_be_a_sites_is_refused_before_anything_is_written(
    sites: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "keys"
    assert made(out, "--sites", sites) == 2
    error = capsys.readouterr().err
    assert "--sites: expected names that differ" in error
    assert found in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["", "localhost,", "not a name", "a..b", "https://example.org", "x" * 64 + ".org"])
def test_an_address_that_is_none_is_refused(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(tmp_path / "keys", "--host", host) == 2
    assert "--host: expected names and addresses" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_server_is_known_by_all_its_names_and_nobody_else_reads_the_keys(tmp_path: Path) -> None:
    hosts = "klinik-m\u00fcnchen.de,192.0.2.7,::1," + "a" * 60 + ".example.org"
    assert made(tmp_path / "keys", "--sites", "north, S\u00fcd 2", "--host", hosts) == 0
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == sorted(
        ["ca.pem", "server.pem", "server.key", "north.key", "north.pub", "S\u00fcd 2.key", "S\u00fcd 2.pub"]
    )
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "keys").iterdir())
    certificate = x509.load_pem_x509_certificate((tmp_path / "keys" / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["xn--klinik-mnchen-3ob.de", "a" * 60 + ".example.org"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]
    assert made(tmp_path / "keys", "--sites", "west") == 2
