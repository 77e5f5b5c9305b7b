"""A program of its own that renders chat templates: `templates.Renderer` starts and bounds it.

A template is a program by whoever made the model folder. Jinja's sandbox keeps it from the machine,
but not from running for ever (nested loops, 9 ** 9 ** 9) or filling the memory, and an operation of
Python's own in C cannot be interrupted. So it runs in a process that the system ends for using too
much of either.

Reads a line of JSON {"template", "values", "limit"} and writes one {"text"} or {"error"}, until its
input ends. Run with the paths of jinja2 and markupsafe; imports nothing of the package.
"""

import contextlib
import datetime
import json
import resource
import sys

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 3


def environment():
    """Returns the sandbox that transformers renders chat templates in, as far as they are text."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """The tag {% generation %}, which marks answers for training and shows what it encloses."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(form):
        return datetime.datetime.now().strftime(form)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def render(made, templates: dict, request: dict) -> dict:
    """Returns the answer to a request; `templates` keeps those that were compiled."""
    source, limit = request["template"], request["limit"]
    try:
        if source not in templates:
            templates.clear()
            templates[source] = made.from_string(source)
        text, length = [], 0
        for piece in templates[source].generate(**request["values"]):
            text.append(piece)
            length += len(piece)
            if length > limit:
                return {"error": f"it makes a text of more than {limit} characters"}
        return {"text": "".join(text)}
    except MemoryError:
        templates.clear()
        return {"error": f"it takes more than {MEMORY_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # templates raise errors of their own making
        return {"error": (str(error).strip() or type(error).__name__)[:500]}


def main() -> None:
    """Answers requests until the input ends."""
    sys.path += sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    made, templates = environment(), {}
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    for line in sys.stdin:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used = int(usage.ru_utime + usage.ru_stime) + 1
        limit = used + CPU_SECONDS
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
        answer = json.dumps(render(made, templates, json.loads(line)))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
