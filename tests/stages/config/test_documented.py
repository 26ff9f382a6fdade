"""Every table and each of its fields says what it is: help and docs/config.md show this text."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

from stages import config
from stages.table import Table

CHOOSERS = {"kind", "name"}
"""The field that chooses among tables; its value is documented by the table that it chooses."""

for module in pkgutil.iter_modules(config.__path__):
    importlib.import_module(f"stages.config.{module.name}")


def product_tables(base: type[Table] = Table) -> Iterator[type[Table]]:
    for table in base.__subclasses__():
        if table.__module__.startswith("stages."):
            yield table
        yield from product_tables(table)


@pytest.mark.parametrize("table", sorted(set(product_tables()), key=str), ids=lambda t: t.__name__)
def test_a_table_and_its_fields_are_documented(table: type[Table]) -> None:
    assert inspect.getdoc(table) != inspect.getdoc(table.__mro__[1])
    lacking = {name for name, field in table.model_fields.items() if not field.description}
    assert lacking <= CHOOSERS
