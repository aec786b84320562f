"""Every public function of arrays is differentiated in every way, or there is a reason why not."""

from __future__ import annotations

import pytest

from gpunet.testing import check_grads
from tests.derivatives import CASES, NONE, PAGE, page, public_functions


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in CASES.items() for kind in kinds])
def test_derivatives(name: str, kind: str) -> None:
    for case in CASES[name][kind]:
        check_grads(case.function, case.arrays, order=2, modes=("fwd", "rev"))


def test_no_function_is_left_out() -> None:
    names = set(public_functions())
    assert names == CASES.keys() | NONE.keys()
    assert not CASES.keys() & NONE.keys()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.derivatives writes it anew"
