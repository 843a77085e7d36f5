"""Chat templates that would loop, grow or reach out; and that honest ones still do what they do.

A tenth of the random cases by default, all of them with QUIETCHOIR_FUZZ=full.
"""

import random
import time

import pytest

from quietchoir.core.errors import ModelFileError, RequestError
from quietchoir.core.models.tokenizer.chat_template import ChatTemplate
from quietchoir.tests.fakes.tokenizers import KINDS

from ..files.test_hostile import CASES, GROWTH, HELLO, SECONDS, peak


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) if false %}{% endfor %}" * 200,
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% set x = namespace(v='x') %}{% for i in range(99) %}{% set x.v = x.v ~ x.v %}{% endfor "
        "%}{{ x.v }}",
        "{% set x = 'x' * 60000 %}" + "{% set x = x + x %}" * 40,
        "{% set x = 'x' %}" + "{% set x = x ~ x %}" * 60,
        "{% set x = [1] %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
        "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
        "{% set x = (1,) %}" + "{% set x = (x, x) %}" * 60 + "{{ {x: 1} }}",
        "{% set x, y = [1], [1] %}" + "{% set x, y = [x, x], [y, y] %}" * 60 + "{{ x == y }}",
        "{% set x = {} %}" + "{% set x = {'a': x, 'b': x} %}" * 60 + "{{ x|tojson }}",
        "{% set x = {} %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x|string }}",
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.v = [b, b] %}{% set b.v = [a] "
        "%}{{ [a]|string }}",
        "".join(f"{{% set n{i} = namespace() %}}" for i in range(40))
        + "".join(f"{{% set n{i}.v = [n{i + 1}, n{i + 1}] %}}" for i in range(39))
        + "{{ n0 }}",
        "{{ [['x' * 60000] * 60000]|join }}",
        "{{ [messages] * 10**9 }}",
        "{{ 'x' * 10**10 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% set n = namespace(v=9) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor "
        "%}{{ n.v }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x'.center(10**9) }}",
        "{{ 'x'|center(10**9) }}",
        "{{ ('x' * 60000).replace('', 'y' * 60000) }}",
        "{{ ('x' * 60000)|replace('x', 'y' * 60000) }}",
        "{{ ('y' * 60000).join(['x'] * 60000) }}",
        "{{ range(90000)|join('y' * 60000) }}",
        "{{ messages|tojson(indent=10**9) }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) "
        "}}",
        "{{ range(99999)|map('upper')|map('lower')|list|length }}" * 100,
        "{{ lipsum(n=10**9) }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%((a))999999999d' % {'(a)': 1} }}",
        "{{ '%(a)999999999d'|format(a=1) }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ ('%(a)s' * 9000) % {'a': 'x' * 60000} }}",
        "{{ ('{0}' * 9000).format('x' * 60000) }}",
        "{{ '{0:{1}}'.format(1, 10**9) }}",
        "{{ '{0!r:>999999999}'.format(1) }}",
        "{{ '{a:999999999}'.format_map({'a': 1}) }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ '{:9999999999}'|format }}{{ ('{:999999999}'|safe).format(1) }}",
        "{{ (1).to_bytes(10**9) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ '\t'.expandtabs(10**9) }}",
        "{{ ('\t' * 60000).expandtabs(60000) }}",
        "{{ ('x\n' * 30000)|indent(60000) }}",
        "{{ ('x' * 60000)|wordwrap(1, wrapstring='y' * 60000) }}",
        "{{ [1]|batch(10**9, 1)|list }}",
        "{{ [1]|slice(10**9)|list }}",
        "{{ ([[1] * 30000] * 30000)|sum(start=[]) }}",
        "{{ messages|tojson(indent='x' * 60000) }}",
        "{{ messages|tojson(separators=('x' * 60000, ':')) }}",
        "{{ (''|attr('ljust'))(10**9) }}",
        "{{ ('&' * 60000)|e|e|e|e|e|e|e|e|e|e }}",
        "{% filter center(10**9) %}x{% endfilter %}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{% include '/etc/passwd' %}",
        "{{" + "(" * 20_000 + "1" + ")" * 20_000 + "}}",
        "{{1" + "+1" * 100_000 + "}}",
        "{% for a in messages %}" * 2000 + "{% endfor %}" * 2000,
        "{{ strftime_now('%999999999Y') }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content.x }}",
        "{{ self.__init__ }}{{ self._TemplateReference__context.environment.globals }}",
    ],
)
def test_a_template_that_loops_grows_or_reaches_out_ends_with_an_error(source: str) -> None:
    start = time.process_time()
    with pytest.raises((RequestError, ModelFileError), match="chat template"):
        ChatTemplate(source).render(HELLO, add_generation_prompt=True)
    assert time.process_time() - start < SECONDS


def test_what_honest_templates_do_is_still_there() -> None:
    source = (
        "{%- set ns = namespace(found=false) -%}{% macro turn(m) %}<{{ m['role'] }}>{{ m.content | "
        "trim }}{% endmacro %}"
        "{% for m in messages %}{% if loop.first and m.role == 'system' %}{% set ns.found = true "
        "%}{% continue %}{% endif %}"
        "{{ turn(m) ~ ('' if loop.last else '|') }}{% endfor %}{% generation %}!{% endgeneration %}"
        "{{ messages[::-1] | selectattr('role', 'equalto', 'user') | list | length }}{{ {'a': 'é'} "
        "| tojson }}"
        "{{ 'a b'.split(' ')[-1] + 'c'.upper() }}{{ strftime_now('%Y')|length }}{{ 7 % 4 }}"
        "{{ bos_token is defined }}{{ ns.found }}"
    )
    messages = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    ]
    pieces = ChatTemplate(source, {"bos_token": "<s>"}).render(
        messages, add_generation_prompt=False
    )
    assert "".join(piece.text for piece in pieces) == (
        '<user>hi|<assistant>yo!1{"a": "é"}bC43TrueTrue'
    )
    written = [piece.text for piece in pieces if piece.written]
    # numbers and JSON are made, and no marks
    assert written == ["hi", "yo", '1{"a": "é"}', "43TrueTrue"]


def test_a_long_conversation_is_within_the_budget() -> None:
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": "hello " * 50} for turn in range(500)
    ]
    for name, kind in KINDS.items():
        pieces = ChatTemplate(kind.template, {"bos_token": kind.bos, "eos_token": kind.eos}).render(
            messages, add_generation_prompt=True
        )
        assert sum(piece.written for piece in pieces) == 500, name


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
def test_templates_put_together_at_random_end() -> None:
    rng, before, ended = random.Random("templates"), peak(), 0
    values = [
        "messages",
        "'ab'",
        "7",
        "range(99999)",
        "x",
        "x.v",
        "messages[0].content",
        "[x, x]",
        "{'a': x}",
        "f",
        "none",
        "loop",
    ]
    marks = ["~", "+", "*", "**", "%", "//", "==", "in", "and"]
    filters = [
        "upper",
        "list",
        "join(x)",
        "replace('a', x)",
        "tojson",
        "length",
        "map('upper')",
        "sort",
        "string",
        "first",
    ]
    calls = [
        ".split('a')",
        "(x)",
        "[0]",
        "[::-1]",
        ".items()",
        ".join(x)",
        ".replace('a', x)",
        ".v",
    ]

    def expression(depth: int = 0) -> str:
        choice = rng.randrange(5) if depth < 4 else 0
        if choice < 2:
            return rng.choice(values)
        if choice == 2:
            return f"({expression(depth + 1)} {rng.choice(marks)} {expression(depth + 1)})"
        return expression(depth + 1) + (
            f"|{rng.choice(filters)}" if choice == 3 else rng.choice(calls)
        )

    def body(depth: int = 0) -> str:
        return "".join(statement(depth) for _ in range(rng.randint(1, 4)))

    def statement(depth: int) -> str:
        choice = rng.randrange(6) if depth < 4 else rng.randrange(2)
        return [
            lambda: "{{ " + expression() + " }}",
            lambda: "{% set x = " + expression() + " %}",
            lambda: "{% for i in " + expression() + " %}" + body(depth + 1) + "{% endfor %}",
            lambda: "{% if " + expression() + " %}" + body(depth + 1) + "{% endif %}",
            lambda: "{% macro f(x) %}" + body(depth + 1) + "{% endmacro %}",
            lambda: (
                "{% set x = "
                "namespace(v=" + expression() + ") %}{% set x.v = " + expression() + " %}"
            ),
        ][choice]()

    for _ in range(CASES // 9):
        start = time.process_time()
        try:
            ChatTemplate("{% set x = 'ab' %}" + body()).render(HELLO, add_generation_prompt=True)
            ended += 1
        except (RequestError, ModelFileError):
            pass
        assert time.process_time() - start < SECONDS
    assert ended > CASES // 200
    assert peak() - before < GROWTH
