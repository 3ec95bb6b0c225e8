"""Templates are expanded as their grammar says, and what cannot be completed is left out."""

import random

import pytest

from kdnas_hf.data.sentence_templates import TemplateGrammar, TemplateSyntaxError


def expansions(template, rules=None, slots=None, draws=300):
    phrase = TemplateGrammar(rules or {}, slots or {}).compile(template)
    rng = random.Random(0)
    return None if phrase is None else {phrase.sample(rng) for _ in range(draws)}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain text", {"plain text"}),
        ("(a|b) c", {"a c", "b c"}),
        ("a|b", {"a", "b"}),
        ("schalt[e|et]", {"schalt", "schalte", "schaltet"}),
        ("((a|b)x|c)", {"ax", "bx", "c"}),
        ("(a;b)", {"a b", "b a"}),
        ("(a;b|c)", {"a b", "b a", "c"}),
        ("a[[ ](b|c)]", {"a", "ab", "ac", "a b", "a c"}),
        (r"\(a\)", {"(a)"}),
        ("", {""}),
    ],
)
def test_alternatives_options_and_permutations(template, expected):
    assert expansions(template) == expected


def test_rules_and_slots_are_filled():
    rules = {"turn": "(turn|switch)", "light": "<the> light", "the": "[the ]"}
    slots = {"state": ["on", "(off|out)"], "level": range(10, 31, 10)}
    assert expansions("<turn> {state:wanted}", rules, slots) == {
        f"{verb} {state}" for verb in ("turn", "switch") for state in ("on", "off", "out")
    }
    assert expansions("<light> {level}", {"light": "light"}, slots) == {"light 10", "light 20", "light 30"}


def test_parts_that_cannot_be_completed_are_pruned():
    assert expansions("go [to {floor}]") == {"go "}
    assert expansions("(on|<missing>|{floor})") == {"on"}
    assert expansions("go to {floor}") is None
    assert expansions("(a;{floor})") is None
    assert expansions("<loop>", {"loop": "again <loop>"}) is None
    assert expansions("<loop>", {"loop": "again[ <loop>]"}) == {"again"}


@pytest.mark.parametrize("template", ["(a|b", "a]", "(a]", "<rule", "a {slot"])
def test_malformed_templates_are_refused(template):
    with pytest.raises(TemplateSyntaxError):
        expansions(template)
