"""Read JAHS-Bench-201's table of trainings: NAS-Bench-201's cells with hyperparameters drawn at random.

Bansal et al., NeurIPS 2022 (github.com/automl/jahs_bench_201). Every row is one configuration after one epoch,
trained by SGD with batches of 256 images under a cosine schedule of 200 epochs. The columns, as the repository's
configuration space (jahs_bench/lib/core/configspace.py) and documentation describe them:

- LearningRate (0.001 to 1) and WeightDecay (0.00001 to 0.01), drawn evenly in the logarithm;
- Activation (ReLU, Hardswish or Mish) and TrivialAugment (whether that takes the place of the usual augmentation);
- N cells in each stage (1, 3 or 5), W channels in the first stage (4, 8 or 16), and Resolution, the share of the
  images' side that is kept (0.25, 0.5 or 1);
- Op1 to Op6, each a place in Identity, Zero, ConvBN3x3, ConvBN1x1, AvgPool1x1 (OP_NAMES of lib/core/constants.py,
  which also says what NAS-Bench-201 calls them: AvgPool1x1 is avg_pool_3x3). They are the edges 1-2, 1-3, 1-4, 2-3,
  2-4 and 3-4 (EDGE_LIST there, used in this order by convert_op_indices_to_naslib), so by source, where a cell string
  goes by target;
- epoch, and accuracies in percent: valid-acc and test-acc.

The table is published as pickled pandas frames, which this project does not unpickle, since that runs code from the
file: `CONVERSION` makes a Parquet file of one with pandas.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nas_retrain.benches import registry
from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.errors import NasRetrainError

OPERATIONS = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
"""By number, see above."""

EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""Of Op1 to Op6, with vertices from 0."""

OPERATION_COLUMNS = tuple(f"Op{place}" for place in range(1, len(EDGES) + 1))
COVARIATES = ("N", "W", "Resolution", "Activation", "TrivialAugment")
COLUMNS = (*OPERATION_COLUMNS, "LearningRate", "WeightDecay", *COVARIATES, "epoch", "valid-acc", "test-acc")
BATCH_SIZE = 256

CONVERSION = (
    "import pandas as pd; table = pd.read_pickle('metric_data/cifar10/raw.pkl.gz'); "
    "table.columns = table.columns.get_level_values(-1); "
    "table[table['epoch'] == 200].to_parquet('jahs_cifar10.parquet')"
)


def is_one(table: pd.DataFrame) -> bool:
    """Whether a table is JAHS-Bench-201's."""
    return {"LearningRate", "Op1", "Op6"} <= set(table.columns)


def trainings(table: pd.DataFrame, source: object) -> pd.DataFrame:
    """A row a training: index, learning_rate, weight_decay, batch_size, epochs, valid, test and `COVARIATES`.

    Raises NasRetrainError, naming `source`, for a column that is missing or holds what cannot be in it.
    """
    if missing := [name for name in COLUMNS if name not in table]:
        raise NasRetrainError(
            f"{source} seems to be JAHS-Bench-201's table, but has no column {', '.join(missing)}. Make it with: "
            f"{CONVERSION}"
        )
    operations = table[list(OPERATION_COLUMNS)]
    if not operations.isin(range(len(OPERATIONS))).all(axis=None):
        raise NasRetrainError(f"{source}: Op1 to Op6 are numbers from 0 to {len(OPERATIONS) - 1}; others are there.")
    for name in ("LearningRate", "WeightDecay", "epoch", "valid-acc", "test-acc"):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise NasRetrainError(f"{source}: column {name!r} holds values that are not numbers.")
    places = [EDGES.index(edge) for edge in space.EDGES]
    numbers = operations.to_numpy(dtype=np.int64)
    codes = numbers @ (len(OPERATIONS) ** np.arange(len(EDGES)))
    first = np.unique(codes, return_index=True)[1]
    cells = {
        int(codes[row]): space.format_cell(tuple(OPERATIONS[numbers[row, place]] for place in places)) for row in first
    }
    indices = {code: registry.default().index_of(cell) for code, cell in cells.items()}
    found = pd.DataFrame(
        {
            "index": [indices[int(code)] for code in codes],
            "learning_rate": table["LearningRate"].to_numpy(dtype=float),
            "weight_decay": table["WeightDecay"].to_numpy(dtype=float),
            "batch_size": BATCH_SIZE,
            "epochs": table["epoch"].to_numpy(),
            "valid": table["valid-acc"].to_numpy(dtype=float),
            "test": table["test-acc"].to_numpy(dtype=float),
        }
    )
    for name in COVARIATES:
        found[name] = table[name].to_numpy()
    return found
