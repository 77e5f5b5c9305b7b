"""Bytes to and from main memory, counted by hand in programs of a few lines."""

import jax
import jax.numpy as jnp

from vlm_jax.planning.traffic import Traffic, moved_bytes, traffic_by_kind

STEP = """HloModule step

%write (param_0: bf16[8,64], param_1: bf16[8,1], param_2: s32[]) -> bf16[8,64] {
  %param_0 = bf16[8,64]{1,0} parameter(0)
  %param_1 = bf16[8,1]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %put = bf16[8,64]{1,0} dynamic-update-slice(%param_0, %param_1, %param_2, %param_2)
}

%look_up (param_0.1: bf16[1000,64], param_1.1: s32[8]) -> bf16[8,64] {
  %param_0.1 = bf16[1000,64]{1,0} parameter(0)
  %param_1.1 = s32[8]{0} parameter(1)
  ROOT %picked = bf16[8,64]{1,0} gather(%param_0.1, %param_1.1), offset_dims={1}
}

%multiply (param_0.2: bf16[64,64], param_1.2: bf16[8,64]) -> bf16[8,64] {
  %param_0.2 = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.2 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %product = bf16[8,64]{1,0} dot(%param_1.2, %param_0.2), lhs_contracting_dims={1}
}

%body (state: (bf16[8,64], bf16[1000,64], bf16[64,64], s32[8], s32[])) -> (bf16[8,64]) {
  %state = (bf16[8,64]{1,0}, bf16[1000,64]{1,0}, bf16[64,64]{1,0}, s32[8]{0}, s32[]) parameter(0)
  %cache = bf16[8,64]{1,0} get-tuple-element(%state), index=0
  %table = bf16[1000,64]{1,0} get-tuple-element(%state), index=1
  %weight = bf16[64,64]{1,0} get-tuple-element(%state), index=2
  %tokens = s32[8]{0:S(1)} get-tuple-element(%state), index=3
  %slot = s32[]{:S(2)} get-tuple-element(%state), index=4
  %bring = (bf16[64,64]{1,0:S(1)}, bf16[64,64]{1,0}, u32[]{:S(2)}) copy-start(%weight)
  %x = bf16[8,64]{1,0:S(1)} fusion(%table, %tokens), kind=kLoop, calls=%look_up
  %here = bf16[64,64]{1,0:S(1)} copy-done(%bring)
  %y = bf16[8,1]{1,0:S(1)} fusion(%here, %x), kind=kOutput, calls=%multiply
  %new = bf16[8,64]{1,0} fusion(%cache, %y, %slot), kind=kLoop, calls=%write
  ROOT %next = (bf16[8,64]{1,0}) tuple(%new)
}

%go_on (seen: (bf16[8,64])) -> pred[] {
  %seen = (bf16[8,64]{1,0}) parameter(0)
  ROOT %yes = pred[]{:S(2)} constant(true)
}

ENTRY %main (given: bf16[8,64]) -> bf16[8,64] {
  %given = bf16[8,64]{1,0} parameter(0)
  %loop = (bf16[8,64]{1,0}) while(%given), condition=%go_on, body=%body
  ROOT %last = bf16[8,64]{1,0} get-tuple-element(%loop), index=0
}
"""


def test_a_step_reads_its_weights_once_its_rows_and_its_slot():
    weight, rows, slot = 64 * 64 * 2, 8 * 64 * 2, 8 * 2
    assert moved_bytes(STEP) == weight + rows + slot


def test_what_is_not_brought_to_fast_memory_is_read_where_it_is_used():
    in_main = STEP.replace("bf16[64,64]{1,0:S(1)}", "bf16[64,64]{1,0}")
    assert moved_bytes(in_main) == moved_bytes(STEP) + 2 * 64 * 64 * 2, "copied, and read again"


def test_bytes_are_told_by_kind_and_copies_have_what_is_left():
    weight, rows, slot, total = 64 * 64 * 2, 8 * 64 * 2, 8 * 2, 100_000
    named = 'calls=%look_up, metadata={op_name="jit(step)/jit(embed)/gather"}'
    found = traffic_by_kind(STEP.replace("calls=%look_up", named), total)
    others = {
        "embed": Traffic(accessed=2 * rows + 8 * 4, moved=rows),
        "products": Traffic(accessed=weight + rows + slot, moved=0),
        "other": Traffic(accessed=2 * slot + 4, moved=slot),
    }
    left = total - sum(one.accessed for one in others.values())
    assert found == {"copies to fast memory": Traffic(left, moved=weight), **others}
    assert sum(one.moved for one in found.values()) == moved_bytes(STEP)


def test_kernels_access_what_they_say_themselves():
    call = (
        "ENTRY %main (q: f32[10,10]) -> f32[10,10] {\n  %q = f32[10,10]{1,0} parameter(0)\n"
        '  ROOT %out = f32[10,10]{1,0:S(1)} custom-call(%q), backend_config={"bytes_accessed":"7"}'
        "\n}"
    )
    assert traffic_by_kind(call, 7) == {"kernels": Traffic(accessed=7, moved=400)}


def test_a_compiled_program_reads_its_arguments_and_writes_its_result():
    program = jax.jit(lambda a, b: jnp.tanh(a) + 2 * b)
    given = jax.ShapeDtypeStruct((100, 30), jnp.float32)
    text = program.lower(given, given).compile().as_text()
    assert moved_bytes(text) == 3 * 100 * 30 * 4
