"""The package nas-bench-201 (its module is nas_201_api): what it reads of a file in the published form."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

from nas_retrain.benches import registry
from nas_retrain.benches.registry import PublishedFile
from nas_retrain.errors import NasRetrainError

_EXAMPLE = """
```python
from nas_201_api import NASBench201API

api = NASBench201API({pth}, verbose=False)
api.get_more_info({cell}, {name}, hp="{epochs}", is_random=False)["{accuracy}"]
api.find_best({name}, "ori-test", hp="{epochs}")
```
"""

_REMARKS = (
    "A cell that is not covered: a ValueError from nas-bench-201 (query_by_arch prints that it is not evaluated and "
    "returns None).",
    "Of nas-bench-201, show wants 12 and 200 epochs, get_net_config 12, statistics every cell: errors where they are "
    "not there.",
)


def read_back(path: Path, dataset: str, epochs: int) -> dict[tuple[int, int], float]:
    """The test accuracies, in percent, that the package finds in a file, by cell and seed.

    Raises NasRetrainError, naming `path`, if the package cannot open it or finds a cell under another string.
    """
    from nas_201_api import NASBench201API

    try:
        api = NASBench201API(str(path), verbose=False)
        found = {}
        for cell in api.evaluated_indexes:
            if api.query_index_by_arch(registry.default().arch_at(cell)) != cell:
                raise ValueError(f"cell {cell} is another one there")
            for seed, result in api.query_by_index(cell, dataset, str(epochs)).items():
                found[cell, seed] = result.get_eval("ori-test")["accuracy"]
    except (ValueError, KeyError, TypeError, AssertionError, RuntimeError, UnpicklingError) as error:
        raise NasRetrainError(f"The package nas-bench-201 cannot read {path}: {error!r}.") from error
    return found


FILE = PublishedFile("nas-bench-201", {12: "less", 200: "full"}, _EXAMPLE, _REMARKS, read_back)
