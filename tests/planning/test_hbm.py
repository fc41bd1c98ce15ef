"""Bytes and FLOPs of compiled programs, against shapes and against XLA's own count where it counts loops too."""

import re

import jax
import jax.numpy as jnp
import pytest

from sora_jax.planning.hbm import hbm_bytes, matmul_flops
from sora_jax.planning.hlo import Module, estimated_cycles, size_of

DEPTH, ROWS, WIDTH = 7, 64, 128


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_a_product_reads_both_factors_and_writes_the_result():
    program = compiled(jnp.matmul, (ROWS, WIDTH), (WIDTH, WIDTH))
    module = Module(program.as_text())
    assert hbm_bytes(module) == 4 * (2 * ROWS * WIDTH + WIDTH * WIDTH)
    assert matmul_flops(module) == 2 * ROWS * WIDTH * WIDTH == program.cost_analysis()["flops"]


def test_a_loop_counts_as_often_as_it_runs_and_of_stacked_weights_only_the_slice():
    def apply(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    module = Module(compiled(apply, (ROWS, WIDTH), (DEPTH, WIDTH, WIDTH)).as_text())
    assert matmul_flops(module) == DEPTH * 2 * ROWS * WIDTH * WIDTH
    least = DEPTH * 4 * (2 * ROWS * WIDTH + WIDTH * WIDTH)
    # The slice may be copied first, and the carried rows once more; the whole stack is never read in each turn.
    assert least <= hbm_bytes(module) <= 3.2 * least


def test_a_loop_that_fills_a_stack_writes_one_layer_at_a_time():
    def apply(x):
        return jax.lax.scan(lambda x, _: (x * 2, x), x, None, length=DEPTH)[1]

    module = Module(compiled(apply, (ROWS, WIDTH)).as_text())
    layer = 4 * ROWS * WIDTH
    assert hbm_bytes(module) < DEPTH * 8 * layer < DEPTH * DEPTH * 2 * layer


def test_a_convolution_counts_its_kernel():
    def apply(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    program = compiled(apply, (2, 8, 8, 16), (3, 3, 16, 32))
    inside = 8 * 3 - 2  # products of a row of 8 with a kernel of 3 that do not meet its padding
    assert matmul_flops(Module(program.as_text())) == 2 * 2 * 32 * 16 * inside**2 == program.cost_analysis()["flops"]


def test_a_product_of_batches_of_matrices_in_the_form_of_a_tpu_has_holes_that_count_nothing():
    text = """\
ENTRY %main (a: bf16[16,8,32], b: bf16[16,32,4]) -> bf16[16,8,4] {
  %a = bf16[16,8,32]{2,1,0} parameter(0)
  %b = bf16[16,32,4]{2,1,0} parameter(1)
  ROOT %c = bf16[16,8,4]{2,1,0} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf
}
"""
    assert matmul_flops(Module(text)) == 2 * 16 * 8 * 32 * 4


@pytest.mark.parametrize(
    ("shape", "everywhere", "in_hbm"),
    [
        ("f32[4,8]{1,0}", 128, 128),
        ("bf16[3]{0:T(128)(2,1)S(1)}", 6, 0),
        ("(s32[]{:T(128)}, /*index=1*/pred[7], token[])", 11, 11),
        ("s4[3]", 2, 2),
        ("f8e4m3fn[10]", 10, 10),
        ("bf16[2,2]{1,0:T(8,128)(2,1)S(5)}", 8, 0),
    ],
)
def test_sizes_of_printed_shapes(shape, everywhere, in_hbm):
    assert size_of(shape) == everywhere
    assert size_of(shape, in_hbm=True) == in_hbm


def test_cycles_are_those_that_the_compiler_expects_loops_as_often_as_they_run():
    text = """HloModule m

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %x = f32[4] get-tuple-element(%state), index=1
  %y = f32[4] add(%x, %x), backend_config={"estimated_cycles":"70"}
  ROOT %next = (s32[], f32[4]) tuple(%count, %y)
}

%test (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[], f32[4]) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: f32[4]) -> (s32[], f32[4]) {
  %x = f32[4] parameter(0)
  %zero = s32[] constant(0)
  %twice = f32[4] add(%x, %x), backend_config={"estimated_cycles":"5"}
  %start = (s32[], f32[4]) tuple(%zero, %twice)
  ROOT %loop = (s32[], f32[4]) while(%start), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    assert estimated_cycles(Module(text)) == 5 + 3 * 70
    assert estimated_cycles(Module(re.sub(r", backend_config=\{\"est[^}]*\}", "", text))) is None
