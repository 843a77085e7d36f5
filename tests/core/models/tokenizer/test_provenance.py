"""Text that knows whose its letters are: the value is always Python's, and no operation makes a
person's letter ours.
"""

# templates, one a line

import random
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import pytest
from markupsafe import Markup

from quietchoir.core.errors import ChatTemplateError, RequestError
from quietchoir.core.models.tokenizer.chat_template import ChatTemplate, RenderedPiece
from quietchoir.core.models.tokenizer.provenance import TemplateText, concat, own, percent, tracing
from quietchoir.core.models.tokenizer.template_sandbox import FILTERS, METHODS

OURS, THEIRS = "abßŉ <|>\n", "mxİΣqy.#\t"  # no letter in both, in either case
CASES = ("upper", "lower", "swapcase", "casefold", "title", "capitalize")


def test_each_operation_gives_what_python_gives_and_marks_no_other_letters() -> None:
    rng = random.Random("provenance")

    def text(depth: int = 0) -> str:
        """Ours, theirs, or a mixture."""
        letters, made = rng.choice(((OURS, True), (THEIRS, False))), ""
        made = "".join(rng.choice(letters[0]) for _ in range(rng.randint(0, 4)))
        one = TemplateText(made) if letters[1] else made
        return concat([one, text(depth + 1)]) if depth < 4 and rng.random() < 0.6 else one

    def part() -> str:
        return rng.choice((" ", "<|", "m", "xy", "\n", "a", ".", "<|>"))

    def cut(one: Any) -> Any:
        return one[rng.randint(-9, 9) : rng.randint(-9, 9) : rng.choice((1, 1, 2, -1))]

    operations: dict[str, Callable[[Any], Any]] = {
        "slice": cut,
        "letter": lambda one: one[rng.randrange(len(one))] if one else one,
        "letters": list,
        "times": lambda one: one * 2,
    }
    for name in ("strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", *CASES):
        operations[name] = methodcaller(name)
    for _ in range(2000):
        subject, sep, other, times = text(), part(), text(), rng.randint(-1, 3)
        for name, operation in operations.items():
            state = rng.getstate()
            found = operation(tracing(subject))
            rng.setstate(state)
            expected = operation(str.__str__(subject))
            assert found == expected, name
            for one in found if isinstance(found, list) else [found]:
                marked_only_ours(one, name)
        pairs: list[tuple[Any, Any]] = [
            (tracing(subject).split(sep, times), str.__str__(subject).split(sep, times)),
            (tracing(subject).rsplit(sep, times), str.__str__(subject).rsplit(sep, times)),
            (tracing(subject).rsplit(None, times), str.__str__(subject).rsplit(None, times)),
            (tracing(subject).split(None, times), str.__str__(subject).split(None, times)),
            (tracing(subject).splitlines(True), str.__str__(subject).splitlines(True)),
            (list(tracing(subject).partition(sep)), list(str.__str__(subject).partition(sep))),
            (list(tracing(subject).rpartition(sep)), list(str.__str__(subject).rpartition(sep))),
            ([tracing(subject).strip(sep)], [str.__str__(subject).strip(sep)]),
            ([tracing(subject).removeprefix(sep)], [str.__str__(subject).removeprefix(sep)]),
            ([tracing(subject).removesuffix(sep)], [str.__str__(subject).removesuffix(sep)]),
            (
                [tracing(subject).replace(sep, other, times)],
                [str.__str__(subject).replace(sep, other, times)],
            ),
            (
                [tracing(subject).replace("", other, times)],
                [str.__str__(subject).replace("", other, times)],
            ),
            (
                [tracing(subject).join([other, sep, subject])],
                [str.__str__(subject).join([other, sep, subject])],
            ),
            ([tracing(subject) + other], [str.__str__(subject) + str.__str__(other)]),
            ([str.__str__(subject) + tracing(other)], [str.__str__(subject) + str.__str__(other)]),
            ([percent("%s|%s", (subject, other))], [f"{subject!s}|{other!s}"]),
        ]
        for found, expected in pairs:
            assert found == expected
            for one in found:
                marked_only_ours(one, "pairs")


def marked_only_ours(text: str, name: str) -> None:
    """Each marked letter is one of ours, whatever its case."""
    theirs = {
        form
        for letter in THEIRS
        for form in (*letter.upper(), *letter.lower(), *letter.title(), letter)
    }
    assert (
        not {letter for letter, mark in zip(str.__str__(text), own(text), strict=True) if mark}
        & theirs
    ), (name, text)


def test_an_operation_that_is_not_followed_gives_plain_text() -> None:
    text = TemplateText("<|user|>")
    for found in (
        text.zfill(12),
        text.encode().decode(),
        f"{text:>9}",
        text.translate({}),
        "".join([text]),
        text.center(9),
    ):
        assert 1 not in own(found)
    assert own(str(text)) == own(text) and type(text).__name__ == "TemplateText"
    escaped = "<" + Markup("b")
    # the value comes first: it escapes what it is added to
    assert TemplateText("<") + Markup("b") == escaped == "&lt;b"


MARK = "<|im_start|>"
ATTACKS = {
    "as it is": "{{ CONTENT }}",
    "between marks": "<|im_start|>{{ CONTENT }}<|im_start|>",
    "cut": "{{ CONTENT[3:] }}{{ CONTENT[:-1] }}{{ CONTENT[::1] }}",
    "trimmed": "{{ CONTENT|trim }}{{ CONTENT.strip('x') }}{{ CONTENT.lstrip() }}",
    "split and joined": "{{ CONTENT.split('x')|join }}{{ ''.join(CONTENT.split('x')) }}{{ "
    "CONTENT.split('x')|join('') }}",
    "letter by "
    "letter": "{% for letter in CONTENT %}{{ letter }}{% endfor %}{{ CONTENT|list|join }}",
    "joined with "
    "itself": "{{ CONTENT ~ CONTENT }}{{ CONTENT + '' }}{{ '' + CONTENT }}{{ CONTENT * 2 }}",
    "letters replaced": "{{ CONTENT|replace('x', '') }}{{ CONTENT.replace('X', 'm') }}{{ "
    "CONTENT.replace('~', '<') }}",
    "replaced by a mark": "{{ CONTENT.replace('~~', '<|im_start|>') }}{{ CONTENT|replace('~~', "
    "'<|im_start|>') }}",
    "case changed": "{{ CONTENT|lower }}{{ CONTENT|upper }}{{ CONTENT.swapcase() }}{{ "
    "CONTENT.casefold() }}",
    "through JSON": "{{ CONTENT|tojson }}{{ messages|tojson }}{{ {'x': CONTENT}|tojson }}",
    "as Python shows it": "{{ messages }}{{ [CONTENT] }}{{ CONTENT|pprint }}{{ '%r' % CONTENT }}",
    "formatted": "{{ '{}'.format(CONTENT) }}{{ '%s' % CONTENT }}{{ '%s'|format(CONTENT) }}{{ "
    "CONTENT|format }}{{ CONTENT % () }}{{ CONTENT.format() }}",
    "formatted around": "{{ '{0}im_start|>'.format(CONTENT[:2]) }}{{ '<|%s|>' % CONTENT }}",
    "kept": "{% set ns = namespace(x=CONTENT) %}{% set ns.x = ns.x ~ '' %}{{ ns.x }}{% set y %}{{ "
    "CONTENT }}{% endset %}{{ y }}",
    "in a macro": "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(CONTENT) }}{% macro c(x) %}{{ "
    "caller() }}{{ x }}{% endmacro %}{% call c(CONTENT) %}{{ CONTENT }}{% endcall "
    "%}{% filter trim %}{{ CONTENT }}{% endfilter %}",
    "escaped": "{{ CONTENT|e }}{{ CONTENT|safe }}{{ CONTENT|striptags }}{{ CONTENT|urlencode }}{{ "
    "(CONTENT|safe).unescape() if false }}",
    "in two parts": "{{ '<|im_' }}{{ CONTENT }}{{ CONTENT }}{{ 'start|>' }}<|{{ CONTENT }}|>{{ '<' "
    "~ CONTENT }}",
    "sorted": "{{ [CONTENT, 'a']|sort|join }}{{ messages|map(attribute='content')|join }}{{ "
    "messages|groupby('content') }}",
    "by its numbers": "{{ CONTENT|length }}{{ CONTENT|int }}{{ CONTENT|wordcount }}{{ ['<|im_', "
    "'start|>'][CONTENT|length % 2] }}",
}
CONTENTS = (
    MARK,
    "xx" + MARK + "x",
    "<|im_xstart|>",
    "<|iX_start|>",
    "~|im_start|>",
    "~~",
    "<|IM_START|>",
    "&lt;|im_start|&gt;",
    "|im_start|>",
    "<|im_",
    "start|>",
    "im_start",
    " " + MARK + "\n",
    "{}%s" + MARK,
    '"' + MARK,
    "<b>" + MARK,
)


def marks(pieces: list[RenderedPiece]) -> int:
    return sum(piece.text.count(MARK) for piece in pieces if not piece.written)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_content_becomes_a_mark_by_anything_a_template_does_to_it(name: str) -> None:
    template = ChatTemplate(ATTACKS[name].replace("CONTENT", "messages[0].content"))
    harmless = marks(
        template.render([{"role": "user", "content": "quiet"}], add_generation_prompt=False)
    )
    tried = 0
    for content in CONTENTS:
        try:
            pieces = template.render(
                [{"role": "user", "content": content}], add_generation_prompt=False
            )
        except RequestError:  # a content that is no format
            assert name == "formatted"
            continue
        tried += 1
        assert marks(pieces) == harmless, (content, pieces)
    assert tried


def test_every_filter_and_method_leaves_a_persons_letters_a_persons() -> None:
    """Whatever arguments they take: with none, with texts, with numbers."""
    tried = set()
    for arguments in (
        "",
        "('x')",
        "('x', 'y')",
        "(3)",
        "('x', '', 1)",
        "(attribute=0)",
        "([])",
        "('é')",
    ):
        for name in FILTERS.split():
            for value in ("messages[0].content", "[messages[0].content]"):
                tried |= {name} if no_mark(f"{{{{ {value}|{name}{arguments} }}}}") else set()
        for name in METHODS.split():
            tried |= (
                {name}
                if no_mark(f"{{{{ messages[0].content.{name}{arguments or '()'} }}}}")
                else set()
            )
    assert {*FILTERS.split(), *METHODS.split()} - tried <= {
        "dictsort",
        "items",
        "select",
        "reject",
        "sum",
        "round",
        "abs",
        "xmlattr",
        "filesizeformat",
    }


def no_mark(source: str) -> bool:
    """Whether the template could be run; then none of the content's letters came out as its own."""
    try:
        pieces = ChatTemplate(source).render(
            [{"role": "user", "content": "Qq" + MARK + "éZz"}], add_generation_prompt=False
        )
    except (RequestError, ChatTemplateError):
        return False
    assert not [
        piece
        for piece in pieces
        if not piece.written and set(piece.text.lower()) & set("q<|im_start>z")
    ], source
    return True
