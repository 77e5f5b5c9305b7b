"""The persistent compilation cache: a second process finds the programs of the first."""

import json
import subprocess
import sys

import jax

from tests.children import ENVIRONMENT, ROOT
from vlm_jax.checkpoint import open_folder
from vlm_jax.files import cache_folder
from vlm_jax.hub import SHIPPED
from vlm_jax.study.fingerprint import fingerprint
from vlm_jax.study.runtime import enable_compile_cache

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


def test_a_user_without_a_home_has_no_cache_and_is_told(monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where no home is known
    assert cache_folder() is None
    before = jax.config.jax_compilation_cache_dir
    enable_compile_cache("")
    assert jax.config.jax_compilation_cache_dir == before
    assert "no home folder" in caplog.text
    assert fingerprint(open_folder(SHIPPED / "llava-0"))


def test_a_cache_that_cannot_be_made_is_none(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    enable_compile_cache(str(tmp_path / "file" / "compiled"))
    assert jax.config.jax_compilation_cache_dir == before
    assert "Not a directory" in caplog.text


def test_a_cache_is_at_an_absolute_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_folder() == tmp_path / ".cache" / "vlm_jax"
