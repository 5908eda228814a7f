"""Tables out of pickle files, of which only data are believed.

A pickle is a program: it names functions and calls them. Here it may name what a pandas
table is made of, and nothing else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pandas as pd

from cellgan.errors import DataError

ALLOWED = {
    "builtins": {"slice"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "pandas._libs.arrays": {"__pyx_unpickle_NDArrayBacked"},
    "pandas._libs.internals": {"_unpickle_block"},
    "pandas._libs.missing": {"NA", "NAType"},
    "pandas._libs.tslibs.nattype": {"_nat_unpickle"},
    "pandas._libs.tslibs.timestamps": {"_unpickle_timestamp"},
    "pandas.core.arrays.boolean": {"BooleanArray", "BooleanDtype"},
    "pandas.core.arrays.categorical": {"Categorical"},
    "pandas.core.arrays.datetimes": {"DatetimeArray"},
    "pandas.core.arrays.floating": {"FloatingArray", "Float32Dtype", "Float64Dtype"},
    "pandas.core.arrays.integer": {
        "IntegerArray",
        *(f"{kind}nt{bits}Dtype" for kind in ("I", "UI") for bits in (8, 16, 32, 64)),
    },
    "pandas.core.arrays.numpy_": {"NumpyExtensionArray"},
    "pandas.core.arrays.string_": {"StringArray", "StringDtype"},
    "pandas.core.dtypes.dtypes": {"CategoricalDtype", "DatetimeTZDtype"},
    "pandas.core.frame": {"DataFrame"},
    "pandas.core.indexes.base": {"Index", "_new_Index"},
    "pandas.core.indexes.category": {"CategoricalIndex"},
    "pandas.core.indexes.range": {"RangeIndex"},
    "pandas.core.internals.blocks": {"new_block"},
    "pandas.core.internals.managers": {"BlockManager", "SingleBlockManager"},
    "pandas.core.series": {"Series"},
}
"""Names that a pickled table may use, by module: types, and what makes them anew."""
RENAMED = {
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}
"""Modules of NumPy before 2.0."""


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        place = RENAMED.get(module, module)
        if name not in ALLOWED.get(place, ()):
            msg = f"{module}.{name}"
            raise _RefusedError(msg)
        return super().find_class(place, name)


class _RefusedError(Exception):
    """Something that no table is made of."""


def read_pickled_table(path: Path) -> pd.DataFrame:
    """Read a pickled pandas table without running what else the file may hold.

    Raises
    ------
    DataError
        If the file names anything but parts of a table, or holds none.
    """
    try:
        table = _TableUnpickler(io.BytesIO(path.read_bytes())).load()
    except _RefusedError as error:
        msg = (
            f"{path}: refused: it is no plain table but asks for {error}. A pickle is "
            "code; save the table as .parquet or .csv, if you trust the file."
        )
        raise DataError(msg) from None
    except (OSError, *UNREADABLE) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        msg = f"{path}: cannot be read as a pickled table: {reason}."
        raise DataError(msg) from error
    if not isinstance(table, pd.DataFrame):
        msg = f"{path}: holds a {type(table).__name__}, expected a pandas DataFrame."
        raise DataError(msg)
    return table


UNREADABLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)
"""What unpickling raises for a file that is damaged or no pickle."""
