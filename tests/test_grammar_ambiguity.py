"""Grammars that libllama reads in very many ways are refused; those that people write are not.

All that is refused here was measured: libllama needs seconds to days for one token of a vocabulary
with runs of spaces and letters. All that is served takes it milliseconds.
"""

from __future__ import annotations

import time

import pytest
from effort import assert_takes_less

from libloader.errors import GrammarInvalid
from libloader.grammar import gbnf

FAST_S = 1.0  # the slowest takes a twentieth of it
WORD = "\nx ::= [a-z] | [0-9]"

EXPLOSIVE = {
    "twelve loops": "root ::= " + " ".join(["[a-z]*"] * 12) + ' "."',
    "optional letters, counted": 'root ::= ("a"?){0,24}',
    "any optional letters": "root ::= ([a-z]?){0,20}",
    "optional after a free one": "root ::= [^a] x?{0,40}" + WORD,
    "one space or two": 'root ::= ("  " | " "){0,30} "."',
    "a tree with no brackets": "root ::= y\ny ::= x y y | x" + WORD,
    "a loop of pieces, counted": 'root ::= [a-z]{2,3}*{0,40} "."',
    "a loop counted twice": 'root ::= "ab"*{0,40}{0,40}',
    "behind a long literal": f'root ::= "{"b" * 3000}" ("a"?){{0,50}}',
    "in an object": r"""
        root ::= "{" pair ("," pair)* "}"
        pair ::= "\"" [a-z]+ "\":" value
        value ::= "\"" ([a-z]?){0,40} "\"" | [0-9]+""",
}
USUAL = {
    "json": r"""
        root ::= ws value ws
        value ::= object | array | string | number | "true" | "false" | "null"
        object ::= "{" ws (pair (ws "," ws pair)*)? ws "}"
        pair ::= string ws ":" ws value
        array ::= "[" ws (value (ws "," ws value)*)? ws "]"
        string ::= "\"" ([^"\\] | "\\" ["\\/bfnrt] | "\\u" [0-9a-fA-F]{4})* "\""
        number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [+-]? [0-9]+)?
        ws ::= [ \t\n\r]*""",
    "json with space after each token": r"""
        root ::= object
        value ::= object | array | string | number | ("true" | "null") gap
        object ::= "{" gap (string ":" gap value ("," gap string ":" gap value)*)? "}" gap
        array ::= "[" gap (value ("," gap value)*)? "]" gap
        string ::= "\"" ([^"\\] | "\\" .)* "\"" gap
        number ::= "-"? [0-9]{1,15} ("." [0-9]{1,15})? gap
        gap ::= | " " | "\n" [ \t]{0,20}""",
    "list": r'root ::= ("- " [^\r\n]+ "\n")+',
    "numbered lines": r'''
        root ::= "1. " line "2. " line "3. " line
        line ::= [^\n]* "\n"''',
    "sums": r"""
        root ::= (sum "=" gap term "\n")+
        sum ::= term ([-+*/] gap term)*
        term ::= name | [0-9]+ gap | "(" gap sum ")" gap
        name ::= [a-z] [a-z0-9_]* gap
        gap ::= [ \t\n]*""",
    "chess": r"""
        root ::= ([1-9] [0-9]? ". " move " " move "\n")+
        move ::= (pawn | piece | "O-O" "-O"?) [+#]?
        piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
        pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?""",
    "statements": r"""
        root ::= function*
        function ::= type name "(" (type name)? ")" "{" statement* "}"
        type ::= ("int" | "float") space
        statement ::= (type name space "=" space sum ";") | (name space "=" space sum ";")
            | ("while" "(" test ")" "{" statement* "}")
            | ("if" "(" test ")" "{" statement* "}" ("else" "{" statement* "}")?) | comment
        test ::= sum ("<=" | "<" | "==" | "!=") sum
        sum ::= product (("+" | "-") product)*
        product ::= factor (("*" | "/") factor)*
        factor ::= name | [0-9]+ | "-" factor | name "(" (sum ("," space sum)*)? ")" | "(" sum ")"
        comment ::= "//" [^\n]* "\n" | "/*" ([^*] | "*" [^/])* "*/"
        name ::= [a-zA-Z_] [a-zA-Z_0-9]*
        space ::= [ \t\n]+""",
    "a query": r"""
        root ::= "SELECT " columns gap "FROM" gap name (gap where)? gap ";"
        columns ::= "*" | name (gap "," gap name)*
        where ::= "WHERE" gap test (gap ("AND" | "OR") gap test)*
        test ::= name gap ("=" | "<" | ">") gap ("'" [^']* "'" | [0-9]+ ("." [0-9]+)?)
        name ::= [a-zA-Z_] [a-zA-Z0-9_]*
        gap ::= [ \n\t]*""",
    "markup": r"""
        root ::= element
        element ::= "<" name attribute* gap ("/>" | ">" content* "</" name ">")
        attribute ::= " " gap name gap "=" gap "\"" [^"<]* "\""
        content ::= element | [^<&]+ | "&" name ";"
        name ::= [a-zA-Z_] [a-zA-Z0-9_.-]*
        gap ::= [ \t\r\n]*""",
    "blocks of text": r'''
        root ::= block+
        block ::= "#"{1,6} " " line | ("- " | [0-9]+ ". ") line | code | [^#`\n-] line | "\n"
        code ::= "```" [a-z]* "\n" ([^`]* "\n")* "```\n"
        line ::= [^\n]* "\n"''',
    "thoughts and an answer": r"""
        root ::= "<think>" ([^<] | "<" [^/])* "</think>" [ \n]* ("yes" | "no")""",
    "an address": 'root ::= [a-zA-Z0-9._%+-]+ "@" [a-zA-Z0-9.-]+ "." [a-zA-Z]{2,24}',
    "cells": r'''
        root ::= row ("\n" row)*
        row ::= cell ("," cell)*
        cell ::= [^,"\n]* | "\"" ([^"] | "\"\"")* "\""''',
    "sentences": r"""
        root ::= sentence (" " sentence)* ("\n\n" sentence (" " sentence)*){0,9}
        sentence ::= [A-Z] [^.!?]* [.!?]""",
    "kana": "root ::= ([ぁ-ゟ] | [ァ-ヿ] | [、-〾] | [一-鿿])+ ([ \\n] ([ぁ-ゟ] | [一-鿿])+)*",
    "anything": "root ::= .*",
    "two long counts": 'root ::= [a-z]{0,200} [a-z]{0,200} "."',
    "loops in loops": "root ::= ([a-z]+)+",
    "one or two": 'root ::= ([a-z] | [a-z] [a-z])* "."',
    "eight loops": "root ::= " + " ".join(["[a-z]*"] * 8) + ' "."',
    "a few optional": 'root ::= ("a"?){0,10}',
}


@pytest.fixture(autouse=True)
def _in_a_moment():
    start = time.process_time()
    yield
    assert_takes_less(FAST_S, start)


def _written(text):
    """Join lines that go on an alternative: only there GBNF needs it."""
    return text.replace("\n            |", " |")


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_a_grammar_with_too_many_ways_to_read_a_token_is_refused(name):
    """E04: found before libllama sees it, twelve starred loops too."""
    with pytest.raises(GrammarInvalid, match=r"line \d+: .* too many ways"):
        gbnf.check(EXPLOSIVE[name])


@pytest.mark.parametrize("name", USUAL)
def test_a_grammar_as_people_write_them_is_served(name):
    """E04: eight starred loops among them."""
    gbnf.check(_written(USUAL[name]))
