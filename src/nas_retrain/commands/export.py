"""Retrained accuracies in the formats that NAS code reads: plain tables and, for benchmarks that were published so, the
folder of the nats_bench package and the one file of the benchmark's own package.

The packages keep a curve for every training, keyed by epoch, and their queries ask for its last epoch unless told
otherwise. Most run records know the end of a training only. So a curve here has one point, the last epoch's, and to ask
a package for any other epoch, for a validation split or for a budget that was not trained is an error in the package.
Nothing is filled in. What records know of each epoch is a table of its own.

What a package stores is the state of its own classes, plain dicts and numbers; neither package is needed to write it,
and torch.load reads it with weights_only, as it does by default. The one file is opened with its package once it is
written, and every accuracy compared.
"""

from __future__ import annotations

import bz2
import io
import json
import math
import pickle
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from nas_retrain.benches import registry
from nas_retrain.benches.registry import Published, PublishedFile, Sizes
from nas_retrain.commands.retrain import read_store, say
from nas_retrain.errors import NasRetrainError
from nas_retrain.files.atomic import replacing_folder
from nas_retrain.plan.decisions import Decisions
from nas_retrain.plan.plan import chosen_cells, has_constants, identity, make_plan
from nas_retrain.purpose import is_search
from nas_retrain.rate_policy import Own
from nas_retrain.reports.document import closing_lines
from nas_retrain.reports.markup import code, escaped, python_string, write_csv
from nas_retrain.settings import Settings, digest
from nas_retrain.statistics import accuracies
from nas_retrain.theory.rule import Parametrisation
from nas_retrain.theory.scaling import in_degree_of
from nas_retrain.trainings import curves
from nas_retrain.trainings.store import RunKey, RunRecord
from nas_retrain.trainings.version import code_version

OF_RULES = ("rule", "rule_checksum", "rule_factor", "rule_layers")
"""The columns of records that tell what a rule decided."""

TEST_SET = "ori-test"
"""What the packages call all test images of a data set."""


@dataclass(frozen=True)
class _Chosen:
    """What is exported. records: by network class and seed. classes: for each cell the one whose training stands for
    it. identity: the settings that made them, as of networks without constants (see `plan.identity`), and without what
    each network has of its own. own: whether it has: a searched rate, or what a rule decided for it."""

    records: list[RunRecord]
    classes: Sequence[int]
    identity: dict[str, Any]
    own: bool = False

    @cached_property
    def by_epoch(self) -> pd.DataFrame:
        """One row an epoch of each training whose record has curves; index: the cell under which it was trained."""
        records = pd.DataFrame([vars(record) for record in self.records])
        found = curves.by_epoch(records)
        known = records.rename(columns={"cell": "index"})[["index", "network_class", "dataset", "recipe", "seed"]]
        return known.loc[found["record"]].reset_index(drop=True).join(found.drop(columns="record"))


def print_export(settings: Settings) -> None:
    """Export, and say what was exported and where its data card is."""
    folder = export(settings)
    table = pd.read_parquet(folder / "accuracies.parquet")
    found = (
        f"{settings.analysis.recipe} on {settings.dataset.name}: {table['index'].nunique():,} cells with "
        f"{table['seed'].nunique()} seed(s) after {settings.training.epochs} epoch(s), "
        f"{table['test_accuracy'].mean():.2f} % right on average."
    )
    say("\n".join(closing_lines([found], folder / "README.md")))


def export(settings: Settings) -> Path:
    """Write the records of `analysis.recipe` to export/<recipe> below the results folder, and return that folder.

    All seeds and cells that are stored are written, whatever `cells` and `seeds` say; a training stands for every
    member of its network class. The folder appears whole, in the place of an earlier one, and is the same to the
    last byte for the same records and versions. Raises NasRetrainError if the results folder has no records of the
    recipe made with these settings, or cannot be written.
    """
    chosen = _choose(settings)
    by_cell = _by_cell(chosen)
    table = _table(by_cell, settings)
    renamed = table.rename(columns={"test_accuracy": "accuracy"})
    accuracies.checked(renamed, settings.results_dir, registry.of(settings.bench), foreign=False)
    published = registry.of(settings.bench).published
    states = _states(by_cell, settings) if published else {}
    folder = settings.results_dir / "export" / settings.analysis.recipe
    with replacing_folder(folder) as new:
        table.to_parquet(new / "accuracies.parquet", index=False)
        write_csv(table, new / "accuracies.csv")
        if len(chosen.by_epoch):
            chosen.by_epoch.to_parquet(new / "curves.parquet", index=False)
        if file := _file(settings):
            _write_pth(states, new / _pth_name(settings), settings, file)
            _check_pth(by_cell, new / _pth_name(settings), settings, file)
        if published:
            _write_nats_folder(states, new / _nats_name(settings, published), settings, published)
        (new / "README.md").write_text(_data_card(table, chosen, settings), encoding="utf-8")
    return folder


def _choose(settings: Settings) -> _Chosen:
    """The stored records of the recipe that these settings made; raises NasRetrainError if there are none."""
    folder, recipe = settings.results_dir, settings.analysis.recipe
    stored = read_store(settings)
    there = sorted(recipe for recipe in set(stored.column("recipe")) if not is_search(recipe))
    if recipe not in there:
        what = f"has no records of the recipe {recipe}; it has {', '.join(there)}" if there else "holds no records"
        raise NasRetrainError(
            f"{folder} {what}. Run make retrain first, or choose another recipe: ARGS='analysis.recipe=...'"
        )
    if recipe not in settings.recipes:
        raise NasRetrainError(
            f"analysis.recipe={recipe} is none of the recipes {', '.join(settings.recipes)}. Add it to them: "
            "ARGS='recipe=[...]'"
        )
    made = make_plan(settings, stored)
    planned = {training.network_class: training for training in made.recipes if training.recipe == recipe}
    training = next(iter(planned.values()))
    decisions = Decisions(settings, chosen_cells(settings))
    plain = partial(identity, settings, recipe, base_rate=made.base_rate)

    @cache
    def config_hash(learning_rate: float | None, constants: bool, decided: Parametrisation | None) -> str:
        return digest(plain(learning_rate=learning_rate, constants=constants, decided=decided))

    def is_chosen(record: RunRecord) -> bool:
        """Whether these settings made it. A network that is not planned has the rate of one that is."""
        rate = planned.get(record.network_class, training).learning_rate
        wanted = config_hash(rate, has_constants(settings, record.cell), decisions.of(recipe, record.cell))
        return record.config_hash == wanted

    of_recipe = stored.only(stored.column("recipe") == recipe).records
    records = [record for record in of_recipe if is_chosen(record)]
    if not records:
        raise NasRetrainError(
            f"{folder} has records of {recipe}, but none that these settings made. Give those of the run again: "
            f"PROFILE=... and ARGS='...' (see {folder / 'settings.json'})."
        )
    records.sort(key=lambda record: (record.network_class, record.seed))
    shared, chosen = plain(learning_rate=training.learning_rate, constants=False), settings.recipes[recipe]
    own_rate = isinstance(chosen.rate_policy, Own)
    if own_rate:
        del shared["rate"]
    classes = _classes(records, recipe, decisions, settings)
    return _Chosen(records, classes, shared, own_rate or chosen.rule is not None)


def _classes(records: Sequence[RunRecord], recipe: str, decisions: Decisions, settings: Settings) -> Sequence[int]:
    """For each cell the one whose training stands for it; a rule is only asked about networks that were trained."""
    space, chosen = registry.of(settings.bench), settings.recipes[recipe]
    classes = space.training_classes(in_degree_of(chosen.drawn_as))
    if chosen.rule is None:
        return classes
    trained = {classes[record.cell] for record in records}
    return [
        decisions.training_class(recipe, cell) if network_class in trained else network_class
        for cell, network_class in enumerate(classes)
    ]


def _by_cell(chosen: _Chosen) -> dict[int, list[RunRecord]]:
    """The trainings of each cell that has any, by seed: those of its class."""
    by_class: dict[int, list[RunRecord]] = {}
    for record in chosen.records:
        by_class.setdefault(record.network_class, []).append(record)
    return {cell: by_class[trained] for cell, trained in enumerate(chosen.classes) if trained in by_class}


def _costs(cell: int, settings: Settings) -> tuple[int, int]:
    """Parameters and multiply-accumulates of the network that was trained for a cell; operations without effect have
    no part in it, so they are the same for all members of a class."""
    bench, sizes = registry.of(settings.bench), Sizes.of(settings)
    graph = bench.graph_at(cell)
    return bench.parameters(graph, sizes), bench.flops(graph, sizes)


def _table(by_cell: Mapping[int, Sequence[RunRecord]], settings: Settings) -> pd.DataFrame:
    """One row a cell and seed, by index and seed; accuracies in percent, losses in nats, seconds of training.

    representative: the cell under which the network was trained. copied: whether this row repeats the training of
    another cell, its representative. learning_rate is missing where nothing was trained, a loss where there is none.
    What a rule decided is there only if the recipe has one.
    """
    bench = registry.of(settings.bench)
    classes = bench.training_classes(None)
    rows = []
    for cell, records in by_cell.items():
        parameters, flops = _costs(cell, settings)
        rows += [
            {
                "index": cell,
                "arch": bench.arch_at(cell),
                "network_class": classes[cell],
                "representative": record.cell,
                "copied": cell != record.cell,
                "dataset": record.dataset,
                "recipe": record.recipe,
                "in_degree": record.in_degree,
                "epochs": record.epochs,
                "seed": record.seed,
                "status": record.status,
                "test_accuracy": record.test_accuracy,
                "test_loss": record.test_loss,
                "train_accuracy": record.train_accuracy,
                "train_loss": record.train_loss,
                "learning_rate": record.learning_rate,
                "parameters": parameters,
                "flops": flops,
                "seconds": record.seconds,
                "device": record.device,
                **{name: getattr(record, name) for name in OF_RULES},
            }
            for record in records
        ]
    table = pd.DataFrame(rows)
    if table["rule"].isna().all():
        table = table.drop(columns=list(OF_RULES))
    return table.astype(dict.fromkeys(("test_loss", "train_loss", "learning_rate"), float))


def _states(by_cell: Mapping[int, Sequence[RunRecord]], settings: Settings) -> dict[int, dict[str, Any]]:
    """The state of the packages' ArchResults for each cell."""
    dataset, bench = _published_name(settings), registry.of(settings.bench)
    # By far the longest part of a result. The packages never change it in place, so all members of a class share it.
    times: dict[RunKey, dict[int, float]] = {}
    states = {}
    for cell, records in by_cell.items():
        costs = _costs(cell, settings)
        results = {}
        for record in records:
            if record.key not in times:
                times[record.key] = dict.fromkeys(range(record.epochs), record.seconds / record.epochs)
            results[dataset, record.seed] = _result(cell, record, costs, times[record.key], settings)
        seeds = {dataset: [record.seed for record in records]}
        states[cell] = _arch_results(cell, bench.arch_at(cell), results, seeds)
    return states


def _arch_results(cell: int, arch: str, results: dict[Any, Any], seeds: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "arch_index": cell,
        "arch_str": arch,
        "all_results": results,
        "dataset_seed": seeds,
        "clear_net_done": True,
    }


def _result(
    cell: int, record: RunRecord, costs: tuple[int, int], times: dict[int, float], settings: Settings
) -> dict[str, Any]:
    """The state of the packages' ResultsCount. Costs are in millions, as in the published files."""
    last, parameters, flops = record.epochs - 1, *costs
    config = registry.of(settings.bench).network_config(cell, Sizes.of(settings))
    tested = f"{TEST_SET}@{last}"
    return {
        "name": _published_name(settings),
        "net_state_dict": None,
        "train_acc1es": {last: record.train_accuracy},
        "train_acc5es": None,
        "train_losses": {last: _number(record.train_loss)},
        "train_times": times,
        "arch_config": config | {"class_num": settings.dataset.classes},
        "params": parameters / 1e6,
        "flop": flops / 1e6,
        "seed": record.seed,
        "epochs": record.epochs,
        "latency": None,  # the packages then answer that they do not know it
        "eval_names": [TEST_SET],
        "eval_acc1es": {tested: record.test_accuracy},
        "eval_times": {f"{TEST_SET}@{epoch}": math.nan for epoch in times} if _times_evaluation(settings) else {},
        "eval_losses": {tested: _number(record.test_loss)},
    }


def _times_evaluation(settings: Settings) -> bool:
    published = registry.of(settings.bench).published
    return published is not None and published.times_evaluation


def _number(loss: float | None) -> float:
    """A loss that is not there as NaN: the packages' mean over seeds is then NaN too, where None would break it."""
    return math.nan if loss is None else loss


def _published_name(settings: Settings) -> str:
    """What the packages call the data set; one that they do not know keeps its own name."""
    return accuracies.published_name(registry.of(settings.bench), settings.dataset.name)


def _file(settings: Settings) -> PublishedFile | None:
    """The one file that an export has, if the benchmark was published so and the file has a place for the budget."""
    published = registry.of(settings.bench).published
    file = published.file if published else None
    return file if file and settings.training.epochs in file.budgets else None


def _pth_name(settings: Settings) -> str:
    return f"{registry.of(settings.bench).title}-{settings.dataset.name}-{settings.analysis.recipe}.pth"


def _nats_name(settings: Settings, published: Published) -> str:
    return f"NATS-{published.space}-{settings.dataset.name}-{settings.analysis.recipe}-simple"


def _origin(settings: Settings) -> str:
    """What the files say of themselves, should they be parted from the data card."""
    return (
        f"Not the published {registry.of(settings.bench).title}: its cells retrained by nas-retrain, recipe "
        f"{settings.analysis.recipe}, data set {settings.dataset.name}"
        f"{', without BatchNorm' if settings.network.normalisation == 'none' else ''}. Last epochs only. One training "
        "stands for all cells that are the same network."
    )


def _write_pth(states: Mapping[int, dict[str, Any]], path: Path, settings: Settings, file: PublishedFile) -> None:
    trained, bench = file.budgets[settings.training.epochs], registry.of(settings.bench)
    content = {
        "meta_archs": list(bench.archs),
        "total_archs": bench.size,
        "arch2infos": {
            cell: {
                budget: state if budget == trained else _arch_results(cell, bench.arch_at(cell), {}, {})
                for budget in file.budgets.values()
            }
            for cell, state in states.items()
        },
        "evaluated_indexes": set(states),
        "origin": _origin(settings),
    }
    buffer = io.BytesIO()  # torch's own writing makes a full disk an obscure error, and a path's name part of the file
    torch.save(content, buffer)
    path.write_bytes(buffer.getbuffer())


def _check_pth(by_cell: Mapping[int, Sequence[RunRecord]], path: Path, settings: Settings, file: PublishedFile) -> None:
    """Raise NasRetrainError if the file's package does not find every accuracy in it, and no other."""
    found = file.read_back(path, _published_name(settings), settings.training.epochs)
    wanted = {(cell, record.seed): record.test_accuracy for cell, records in by_cell.items() for record in records}
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differing:
        cell, seed = differing[0]
        raise NasRetrainError(
            f"{file.package} reads {len(differing):,} accuracies of {path.name} otherwise than they were stored; of "
            f"cell {cell} with seed {seed} it reads {found.get(differing[0])} in place of {wanted.get(differing[0])}. "
            "The earlier export was kept."
        )


def _write_nats_folder(
    states: Mapping[int, dict[str, Any]], folder: Path, settings: Settings, published: Published
) -> None:
    folder.mkdir()
    bench = registry.of(settings.bench)
    meta = {
        "meta_archs": list(bench.archs),
        "total_archs": bench.size,
        "arch2infos": None,
        "evaluated_indexes": set(states),
        "origin": _origin(settings),
    }
    _dump(meta, folder / "meta.pickle.pbz2")
    for cell, state in tqdm(states.items(), desc=folder.name, unit="cell", disable=not sys.stderr.isatty()):
        _dump({f"{settings.training.epochs:0{published.digits}d}": state}, folder / f"{cell:06d}.pickle.pbz2")


def _dump(content: object, path: Path) -> None:
    # Small blocks: the default's cost more to set up than a cell takes to compress.
    path.write_bytes(bz2.compress(pickle.dumps(content, protocol=4), compresslevel=1))


def _data_card(table: pd.DataFrame, chosen: _Chosen, settings: Settings) -> str:
    """The folder's README: what is there, how to open it, and what nobody should take it for."""
    records, name, by_epoch = chosen.records, _published_name(settings), chosen.by_epoch
    bench, file = registry.of(settings.bench), _file(settings)
    published = bench.published
    statuses = Counter(record.status for record in records)
    seeds = Counter(record.seed for record in records)
    example = {
        "name": python_string(name),
        "epochs": f"{settings.training.epochs:0{published.digits if published else 1}d}",
        "cell": records[0].cell,
        "seed": records[0].seed,
        "accuracy": "test-accuracy" if name == "cifar10" else "valtest-accuracy",
        "pth": python_string(_pth_name(settings)),
    }
    listed, answers = "", ""
    if published:
        example |= {"space": published.space, "nats": python_string(_nats_name(settings, published))}
        listed = f"- For nats_bench, in fast mode: {code(_nats_name(settings, published))}.\n"
        remarks: tuple[str, ...] = ()
        if published.file:
            pth = code(_pth_name(settings)) if file else "nothing, as said above"
            listed += f"- For {published.file.package}: {pth}.\n"
            remarks = published.file.remarks
        listed += _COPIES
        answers = _ANSWERS.format(
            **example,
            evaluation="NaN" if published.times_evaluation else "None",
            pth_example=file.example.format(**example) if file else "",
            remarks="".join(f"- {remark}\n" for remark in remarks),
        )
    if len(by_epoch):
        measured = ", ".join(name for name in curves.QUANTITIES if name in by_epoch)
        trained = len(by_epoch.drop_duplicates(["index", "seed"]))
        listed = _CURVES.format(trained=trained, trainings=len(chosen.records), measured=measured) + listed
    return _CARD.format(
        bench=escaped(bench.title),
        authors=bench.authors,
        listed=listed,
        also=" (save in `curves.parquet`)" if len(by_epoch) else "",
        answers=answers,
        dataset=escaped(settings.dataset.name),
        recipe=escaped(settings.analysis.recipe),
        warnings="\n".join(f"- **{escaped(warning)}**" for warning in _warnings(settings)),
        cells=table["index"].nunique(),
        all_cells=bench.size,
        networks=len({record.network_class for record in records}),
        all_networks=len(set(chosen.classes)),
        trainings=len(records),
        seeds=", ".join(f"{number:,} with seed {seed}" for seed, number in sorted(seeds.items())),
        rows=len(table),
        copies=table["copied"].sum(),
        finished=statuses["finished"],
        diverged=statuses["diverged"],
        disconnected=statuses["disconnected"],
        chance=100.0 / settings.dataset.classes,
        hashed=_HASHED_WITH_ITS_OWN if chosen.own else _HASHED,
        identity=json.dumps(
            chosen.identity | ({} if chosen.own else {"config_hash": digest(chosen.identity)}), indent=2
        ),
        trained_with=escaped(", ".join(sorted({f"nas-retrain {record.code_version}" for record in records}))),
        torch=escaped(", ".join(sorted({record.torch for record in records}))),
        devices=escaped(", ".join(sorted({record.device for record in records}))),
        written_with=escaped(code_version()),
    )


def _warnings(settings: Settings) -> list[str]:
    """What nobody who opens the files should miss."""
    data, network, epochs = settings.dataset, settings.network, settings.training.epochs
    bench = registry.of(settings.bench)
    published, sizes = bench.published, bench.sizes
    found = [f"These are not {bench.title}'s published results: every network was trained anew."]
    if published and data.name not in published.datasets:
        found.append(
            f"{data.name} is no data set of {bench.title}. It stands under its own name, which the packages' queries "
            "take, save those that are made for their own data sets: simulate_train_eval and statistics refuse it."
        )
    if (network.channels, network.cells_per_stage) != (sizes.channels, sizes.cells_per_stage):
        found.append(
            f"The network has {network.channels} channels and {network.cells_per_stage} cell(s) a stage; "
            f"{bench.title}'s has {sizes.channels} and {sizes.cells_per_stage}."
        )
    if network.normalisation == "none":
        found.append(f"The networks were trained without normalisation; {bench.title}'s have BatchNorm.")
    if data.images_per_epoch < data.train_images:
        found.append(f"Trained on {data.images_per_epoch:,} of the {data.train_images:,} training images.")
    if published and (file := published.file) and epochs not in file.budgets:
        places = " and ".join(map(str, file.budgets))
        found.append(
            f"Trained for {epochs} epochs. The file of {file.package} has places for {places} only, so there is none."
        )
    return [
        *found,
        "One training stands for all cells that are the same network. Their equal results are copies, not "
        "repetitions: do not estimate noise from them.",
    ]


_CURVES = """- `curves.parquet`: one row for each epoch, from 1, of the {trained:,} of {trainings:,} trainings that
  have curves: {measured}. Its `index` is the cell that was trained, which is `representative` in the other
  table. A training that diverged has the epochs before.
"""

_COPIES = """
`make analyze` of nas-retrain reads what is for the packages as well, but takes copies for trainings of their own, so
that noise looks smaller than it is. Give it the `runs.parquet` of the results folder instead.
"""

_CARD = """# {bench}'s cells on {dataset}, retrained: {recipe}

{warnings}

## What is covered

- {cells:,} of {all_cells:,} cells, which are {networks:,} of {all_networks:,} different networks.
- {trainings:,} trainings: {seeds}.
- {rows:,} rows, of which {copies:,} are copies: `copied` says so, and `representative` is the cell that was trained.
- {finished:,} trainings finished, {diverged:,} diverged, {disconnected:,} are of disconnected cells.
- A training whose loss ceased to be finite is `diverged`: its accuracies are chance ({chance:.4g} %), its losses
  missing.
- A cell without a path from input to output is `disconnected`. It is not trained: its accuracies are chance
  ({chance:.4g} %), its losses and its learning rate missing.
- Not there: epochs before the last{also}, validation splits (`cifar10-valid`, `x-valid`, `x-test`), top-5 accuracies,
  latency, the time of evaluation, weights.

## Files

- `accuracies.parquet` and `accuracies.csv`: one row a cell and seed. Accuracies are in percent, losses in nats.
  `seconds` is the time of training, an even share of it where several networks trained as one. `flops` are the
  multiply-accumulates of convolutions and readout for one image. Operations without effect on the output count in
  neither `parameters` nor `flops`, and those that are the same for every image not in `flops`.
{listed}{answers}
## Settings

{hashed}

```json
{identity}
```

- Trained with {trained_with}, torch {torch}, on {devices}.
- Written with nas-retrain {written_with}.

## Licence

MIT. {authors} The rules of the architecture-aware recipe are by Chen, Wu, Wang and Hanin (ICLR 2024, arXiv 2402.17440).
"""

_HASHED = """\
`config_hash` is the hash of the other values; each training carried it. A network in which a convolution reads what
the input does not reach carried the hash of the same values with `"constants": true` among them."""

_HASHED_WITH_ITS_OWN = """\
Each training carried a hash of these values with what was its network's own: a learning rate that was searched for it,
or what the recipe's rule decided for it. The tables have both: `learning_rate`, and where there is a rule its name, the
beginning of the SHA-256 of the file that it is written in, its factor of the learning rate, and what it decided about
layers, as JSON."""

_ANSWERS = """
## How to open them

```python
from nats_bench import create

api = create({nats}, "{space}", fast_mode=True, verbose=False)
info = api.get_more_info({cell}, {name}, hp="{epochs}", is_random=False)  # is_random={seed}: that training
info["{accuracy}"]  # of all test images, the mean over seeds
```
{pth_example}
## What the packages answer

- `hp`: only "{epochs}" was trained. The packages' default is "12". Any other is an error.
- `iepoch`: only the last epoch is there, which is the default. Any other is a KeyError.
- Validation accuracies: not there. simulate_train_eval answers with them, so it is an error, and so is find_best with
  "valid". Searching on test accuracies in their place is a choice to be reported.
- query_by_arch prints validation accuracies too, save for CIFAR-10: there it works, elsewhere it is a KeyError.
- Losses: NaN where they are missing, and for a mean that includes one.
- Time of training: the mean over epochs, for every epoch. Time of evaluation: {evaluation}. Latency: None.
- Costs: millions of parameters and of multiply-accumulates.
- A cell that is not covered: an AssertionError that names the missing file, from nats_bench.
- find_best of nats_bench asks for all cells. Where some are not covered, query the others once each and give
  enforce_all=False.
{remarks}"""
