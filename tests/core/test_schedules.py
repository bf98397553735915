import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core.schedules import StepSchedule, from_curvature

SIZES = st.floats(1e-6, 1e6)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 2**52))
def test_without_tau_the_step_is_constant(size, round_):
    assert StepSchedule(size)(round_) == size


@settings(max_examples=40, deadline=None)
@given(SIZES, st.floats(0.1, 1e6), st.integers(0, 2**40))
def test_with_tau_the_step_is_the_formula_and_falls(size, tau, round_):
    schedule = StepSchedule(size, tau)
    assert schedule(0) == size
    assert schedule(round_) == pytest.approx(size * tau / (tau + round_))
    assert 0.0 < schedule(round_ + 1) <= schedule(round_)


def test_tau_is_where_the_step_has_halved():
    assert StepSchedule(3.0, 7.0)(7) == 1.5


@settings(max_examples=40, deadline=None)
@given(SIZES, st.floats(1e-3, 10.0))
def test_automatic_step_is_the_inverse_curvature_to_six_digits(curvature, scale):
    # Half a unit in the sixth digit is at most 5e-6 of the value.
    assert from_curvature(curvature, scale) == pytest.approx(scale / curvature, rel=5.1e-6)


def test_automatic_step_hides_the_order_of_summation():
    values = [0.1] * 10
    assert sum(values) != 1.0
    assert from_curvature(3 * sum(values), 1.0) == from_curvature(3.0, 1.0) == 0.333333
