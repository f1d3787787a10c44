"""Which tokens keep a constrained text whole, where libllama's grammar alone would not.

libllama's grammar reads a token's bytes as code points and is generous: it takes any byte for the
rest of a character that began, and a control token for its text, which the answer does not show.
What then reaches the client is not what the grammar read: a `"` that was the tail of a broken
character ends the JSON string too early. Here such tokens are forbidden.

Laws: one `WholeText` per sequence; it never forbids a token that ends the generation.
"""

from __future__ import annotations

import codecs

from libloader.llama.vocab import Vocab


class WholeText:
    """The end of one text: the bytes of a character that is not complete yet.

    With `shows_special`, control tokens are allowed: their text is part of the answer.
    """

    def __init__(self, vocab: Vocab, shows_special: bool) -> None:
        self._vocab, self._hidden = vocab, vocab.hidden_tokens
        self._shows_special = shows_special
        self._pending = b""

    def allows(self, token: int) -> bool:
        """Say whether the text stays valid UTF-8, and is shown, with this token behind it."""
        return self._after(token) is not None

    def accept(self, token: int) -> None:
        self._pending = self._after(token) or b""

    def reset(self) -> None:
        self._pending = b""

    @property
    def is_inside(self) -> bool:
        """True while the last character is not complete."""
        return bool(self._pending)

    def _after(self, token: int) -> bytes | None:
        """Return the incomplete bytes behind `token`; None if it does not belong here."""
        if token in self._hidden and not self._shows_special:
            return None
        raw = self._pending + self._vocab.piece(token, special=self._shows_special)
        try:
            n_read: int = codecs.utf_8_decode(raw, "strict", False)[1]
        except UnicodeDecodeError:
            return None
        pending = raw[n_read:]
        # Python waits for the third byte to refuse a surrogate; no token may lead there.
        return None if pending[:1] == b"\xed" and pending[1:] >= b"\xa0" else pending
