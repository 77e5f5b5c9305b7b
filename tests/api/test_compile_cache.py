"""The persistent compilation cache: a second process finds the programs of the first."""

import json
import subprocess
import sys

from tests.children import ENVIRONMENT, ROOT

SCRIPT = """
import json, sys
import jax
import vlm_jax
from vlm_jax.study.runtime import enable_compile_cache

counts = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}

def count(event, **_):
    if event in counts:
        counts[event] += 1

jax.monitoring.register_event_listener(count)
folder, cache = sys.argv[1:]
enable_compile_cache(cache)
vlm = vlm_jax.load(folder)
text = vlm.generate(None, ["Hello"], max_new_tokens=4)
print(json.dumps({"text": text, "hits": counts["/jax/compilation_cache/cache_hits"]}))
"""


def test_a_second_process_compiles_less(tiny_llava, tmp_path):
    def run():
        command = [sys.executable, "-c", SCRIPT, tiny_llava, tmp_path / "cache"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=ENVIRONMENT | {"XLA_FLAGS": ""},  # what compiles in no time is not kept
            check=True,
            timeout=200,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    first = run()
    kept = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert any("decode" in name for name in kept)
    assert any("prefill" in name for name in kept)
    second = run()
    assert first["hits"] == 0
    assert second["hits"] >= 2
    assert second["text"] == first["text"]
