"""hashlib's functions, loaded with the first use.

hashlib brings OpenSSL along, 3.5 MB in each process, and most servers hash nothing: no --cache-dir,
no library to unpack, no crash to remember.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import hashlib


def blake2b(data: bytes = b"", *, digest_size: int = 64) -> hashlib.blake2b:
    import hashlib

    return hashlib.blake2b(data, digest_size=digest_size)


def sha256(data: bytes = b"") -> hashlib._Hash:
    import hashlib

    return hashlib.sha256(data)
