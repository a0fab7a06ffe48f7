"""docs/matrix.md has a cell for every model and capability, and a test for every cell."""

import pytest

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]'), so there are no tests of parity")


def test_the_page_and_the_tests_have_the_same_cells(cells):
    wanted, tests, page, whole = cells
    assert page.keys() == wanted, "run python -m pytest tests/contracts tests/parity tests/headers --matrix"
    assert [cell for cell, said in page.items() if said in ("", "FAILED")] == [], "cells without a test that passes"
    yes = {cell for cell, said in page.items() if said == "yes"}
    assert tests <= page.keys()
    if whole:  # else not every test of the matrix is in this run
        assert yes <= tests, "cells whose tests are gone"
