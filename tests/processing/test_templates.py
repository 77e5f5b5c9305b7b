"""Chat templates are programs by others: sandboxed, and bounded in time, memory and output."""

import os
import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tests import tiny
from vlm_jax.errors import PromptError
from vlm_jax.processing import templates
from vlm_jax.processing.chat import Chat
from vlm_jax.processing.template_worker import CPU_SECONDS
from vlm_jax.processing.templates import Renderer, TemplateError

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi \u00e9"}]}]


@pytest.fixture(scope="module")
def renderer():
    made = Renderer()
    yield made
    made.close()


@pytest.mark.parametrize(
    "template",
    [
        tiny.LLAVA_TEMPLATE,
        tiny.QWEN_TEMPLATE,
        "{%- for m in messages %}\n  {{- m.role }}\n{%- endfor %}\n {% if true %}\n x\n{% endif %}",
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }} {{ bos_token }}",
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
        "{% generation %}{{ messages[0].role }}{% endgeneration %}\n.",
        "{% set ns = namespace(a=1) %}{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(ns.a) }}",
        "{{ messages[0].content | selectattr('type', 'equalto', 'text') | list }}",
        "{{ strftime_now('%Y')[:2] }}{{ messages[0]['role'].upper() }}",
    ],
)
def test_texts_are_those_of_the_reference(renderer, template):
    values = {"messages": MESSAGES, "add_generation_prompt": True, "bos_token": "<s>"}
    named = {key: value for key, value in values.items() if key != "messages"}
    ((expected,), _) = render_jinja_template([MESSAGES], chat_template=template, **named)
    assert renderer.render(template, values) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'x' * 10**11 }}", "MiB of memory"),
        ("{{ 'x' | center(100000000000) }}", "MiB of memory"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than .* characters"),
        ("{{ " + "(" * 50_000, "nested too deeply"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("{{ x.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe|undefined"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{% if %}", "Expected"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ x.append(1) }}", "unsafe"),
    ],
)
def test_what_goes_wrong_is_one_error(renderer, template, message):
    with pytest.raises(TemplateError, match=message):
        renderer.render(template, {"x": [1]})
    assert renderer.render("{{ x }}", {"x": "fine"}) == "fine"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9 ** (9 ** 9) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_ended_and_not_tried_again(renderer, monkeypatch, template):
    monkeypatch.setattr(templates, "_SECONDS", CPU_SECONDS)
    for _ in range(2):
        with pytest.raises(TemplateError, match="too much time or memory"):
            renderer.render(template, {})
        monkeypatch.setattr(templates, "_start", lambda: pytest.fail("it was tried again"))
    monkeypatch.undo()
    assert renderer.render("{{ 1 + 1 }}", {}) == "2"


def test_an_interrupted_template_is_not_the_answer_to_the_next(renderer, monkeypatch):
    def interrupted(self, process, request):
        process.stdin.write(request)
        process.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Renderer, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            renderer.render("{{ x }}", {"x": "the old one"})
    assert renderer.render("{{ x }}", {"x": "the new one"}) == "the new one"


def test_a_worker_that_others_ended_is_started_anew(renderer):
    template = "{{ x }} of a worker that was there"
    renderer.render(template, {"x": 1})
    assert os.getsid(renderer._process.pid) != os.getsid(0)  # a terminal's Ctrl-C ends it not
    renderer._process.kill()
    renderer._process.wait()
    assert renderer.render(template, {"x": 2}).startswith("2")


@pytest.mark.filterwarnings("ignore:os.fork")  # which JAX warns of, rightly
def test_a_fork_has_a_worker_of_its_own():
    before = templates.renderer.render("{{ x }}", {"x": 1}), templates.renderer._process
    child = os.fork()
    if not child:
        code = 1
        try:
            left = templates.renderer._process is None
            code = 0 if left and templates.renderer.render("{{ x }}", {"x": 2}) == "2" else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (templates.renderer.render("{{ x }}", {"x": 1}), templates.renderer._process) == before


def test_rendering_is_quick(renderer):
    values = {"messages": MESSAGES, "add_generation_prompt": True}
    renderer.render(tiny.QWEN_TEMPLATE, values)
    start = time.process_time()
    for _ in range(200):
        renderer.render(tiny.QWEN_TEMPLATE, values)
    assert time.process_time() - start < 1


def test_a_prompt_says_that_the_template_refused_it(llava):
    chat = Chat(llava.ours.tokenizer, "{{ 'x' * 10**11 }}", "<image>", "<image>\n")
    with pytest.raises(PromptError, match="The prompt was refused by the chat template: it takes"):
        chat.render("hi", 0)
