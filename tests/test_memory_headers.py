"""What configs and README say of memory is the estimator's prediction in docs/scaling.md."""

import importlib.util

import pytest
import running

spec = importlib.util.spec_from_file_location("memory_headers", running.ROOT / "tools" / "memory_headers.py")
headers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(headers)
ROWS = headers.read_rows((running.ROOT / "docs" / "scaling.md").read_text())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_header_says_what_was_predicted(row):
    assert row.path.read_text() == headers.with_header(row.path.read_text(), row)
    assert float(row.need) > 0 and row.fits == (float(row.need) <= float(row.room))


def test_the_readme_s_table_is_that_of_the_document():
    readme = (running.ROOT / "README.md").read_text()
    assert len(ROWS) >= 18 and readme == headers.with_table(readme, ROWS)
    told = readme.split(headers.MARKS[0])[1].split(headers.MARKS[1])[0]
    recipe = [row.name for row in ROWS if row.path.parent.name != "ranker_pairwise"]
    assert all(f" {name} " in told for name in recipe)


def test_a_header_is_replaced_not_repeated():
    row = headers.Row("conf_bge", "t4-16gb", "15.0", "12.9", False)
    text = headers.with_header(headers.with_header("# one\n# Memory: old\ndefaults: []\n", row), row)
    assert text == f"# one\n{row.header}\ndefaults: []\n" and "DOES NOT FIT" in text
