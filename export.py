"""Makes a folder of ONNX graphs from a finished model: clients load it without torch, and without the model's code.

    python -m lstmpool.export outputs/demo
    python -m lstmpool.export outputs/demo --test_file test.csv
    python -m lstmpool.export outputs/demo --quantize quantized,quint8_avx2 --output demo-for-servers

MODEL is a folder that train_trainer.py has written, or its name on the Hub. The new folder, outputs/demo-onnx, has
onnx/model.onnx in float32, int8 files of a quarter of that size, the tokenizer and a config that stock clients know.
Its README shows how ONNX Runtime, transformers.js, optimum and Text Embeddings Inference load it.

The float graph counts only if its logits are torch's, up to rounding, on texts alone and in batches: short, empty and
cut ones, padded left and right. Each file also answers rows with labels: those of --test_file, or the validation rows
of the model's run, if their file is still there. An int8 file that loses too much is not kept.

Wrong input ends the command with status 2 and one line that says what was expected, what was found and what to do.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lstmpool.training.errors import InputError
from lstmpool.training.exporting.options import VARIANTS, Request, parse
from lstmpool.training.printing import printing


if TYPE_CHECKING:  # takes seconds to import, and --help does not need it
    from lstmpool.training.exporting.graph import Batch
    from lstmpool.training.exporting.quantised import Graph, Rows
    from lstmpool.training.predicting.model import Finished, Predictor


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with printing():
        try:
            request = parse(sys.argv[1:] if argv is None else argv, description=__doc__)
            from lstmpool.training.loop.interruption import interruptible

            with interruptible():
                run(request)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            print("\nstopped. Nothing was written.", file=sys.stderr)
            return getattr(error, "status", 130)
    return 0


def run(request: Request) -> None:
    """Exports what is asked for, and says what it does. Raises InputError; nothing is written then."""
    import datasets
    import transformers

    from lstmpool.training.exporting.folder import check_output, check_tokenizer, new_folder
    from lstmpool.training.exporting.graph import model_to_export, probes
    from lstmpool.training.exporting.quantised import Rows
    from lstmpool.training.predicting.model import Finished

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    options = request.options
    check_output(request)
    _check_packages()
    model = Finished.find(request.model, options.model_revision, options.trust_remote_code)
    predictor = model.load(use_cpu=True, bf16=False)
    check_tokenizer(predictor.tokenizer, model.title)
    predictor.models = [model_to_export(predictor)]
    print(f"Model: {model.title}, {model.task.title}, on a {model.config.backbone_config.model_type}.")
    if options.test_file is not None:
        rows = Rows.read(options.test_file, model, predictor)
    else:
        rows = Rows.of_run(model, predictor)
    if rows is None:
        print("Rows: none with labels, so it is not known what int8 costs. Name some with --test_file.")
    else:
        print(f"Rows: {rows.title}; the model has {_headline(rows, rows.metric)} in torch.")
    batches = probes(predictor.tokenizer, predictor.models[0], bool(model.reads_pairs))
    with new_folder(request.output) as folder:
        graphs, left_out = _write_graphs(request, predictor, batches, rows, folder)
        _write_beside(request, model, predictor, graphs, rows, left_out, folder)
    print(f"{request.output} is ready. Its README says how to load it.")


def _check_packages() -> None:
    """Raises InputError before any work if the extra is not installed."""
    from lstmpool.training.errors import one_line
    from lstmpool.training.predicting.engine import INSTALL

    with one_line("the command writes ONNX, whose packages cannot be loaded", ImportError, remedy=INSTALL):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401


def _write_graphs(
    request: Request, predictor: Predictor, batches: list[Batch], rows: Rows | None, folder: Path
) -> tuple[list[Graph], list[str]]:
    """Writes the graphs into `folder`; gives those that are kept, and a sentence on each other one."""
    from lstmpool.training.exporting.graph import check_graph, logits_of, write_graph
    from lstmpool.training.exporting.quantised import Graph, difference_on, quantise
    from lstmpool.training.output.found import FLOAT, GRAPHS
    from lstmpool.training.predicting.engine import OnnxModel

    model, path = predictor.models[0], folder / GRAPHS / FLOAT
    expected = [logits_of(model, batch) for batch in batches]
    began = time.monotonic()
    write_graph(model, batches[0], path, predictor.title)
    print(f"Graph: traced in {time.monotonic() - began:,.1f} s, {path.stat().st_size / 1e6:,.1f} MB.", flush=True)
    difference = check_graph(OnnxModel(path), batches, expected, predictor.title)
    print(f"Check: its logits are torch's up to {difference:.1g} on {len(batches)} batches.", flush=True)
    graphs = [Graph(FLOAT, "float32", path.stat().st_size, "any client", difference=difference)]
    _measure(graphs[0], path, predictor, rows)
    by_weights: dict[str, Graph] = {}
    left_out = []
    for variant in request.variants:
        weights = VARIANTS[variant].weights
        twin = by_weights.get(weights)
        if twin is not None and twin not in graphs:
            continue  # its bytes have lost too much already
        graph = quantise(path, variant, twin)
        file = path.with_name(graph.name)
        if twin is None:
            by_weights[weights] = graph
            graph.difference = difference_on(OnnxModel(file), batches, expected, graph.name)
            _measure(graph, file, predictor, rows)
        lost = 0.0 if rows is None else rows.points_lost(graph)
        if lost > request.options.max_loss:
            file.unlink()
            left_out.append(
                f"{graph.name} is not kept: on the rows it loses {lost:.2f} points, more than --max_loss "
                f"{request.options.max_loss:g}."
            )
            print(left_out[-1], flush=True)
            continue
        graphs.append(graph)
        share = graph.bytes / graphs[0].bytes
        print(f"int8: {graph.name}, {graph.bytes / 1e6:,.1f} MB, {share:.2f} of the float graph.{_told(graph, rows)}")
    return graphs, left_out


def _measure(graph: Graph, file: Path, predictor: Predictor, rows: Rows | None) -> None:
    """Lets the graph in `file` answer the rows, if there are any."""
    from lstmpool.training.predicting.engine import OnnxModel
    from lstmpool.training.predicting.model import Predictor

    if rows is not None:
        title, tokenizer, task = predictor.title, predictor.tokenizer, predictor.task
        rows.measure(graph, Predictor(title, [OnnxModel(file)], tokenizer, task, predictor.device, bf16=False))


def _write_beside(
    request: Request,
    model: Finished,
    predictor: Predictor,
    graphs: list[Graph],
    rows: Rows | None,
    left_out: list[str],
    folder: Path,
) -> None:
    """Writes all files but the graphs into `folder`."""
    from lstmpool.training.exporting.card import Contents, card
    from lstmpool.training.exporting.folder import write_config, write_handler, write_record, write_tokenizer

    exported = predictor.models[0]
    contents = Contents(
        name=request.output.name,
        source=Path(model.title).name if Path(model.title).is_dir() else model.title,
        family=model.config.backbone_config.model_type,
        task=model.task,
        reads_pairs=bool(model.reads_pairs),
        graphs=graphs,
        float_bytes=sum(weight.numel() * 4 for weight in exported.parameters()),
        rows=rows,
        left_out=left_out,
        handler=request.options.handler,
        exits=bool(getattr(exported.config, "early_exit", False)),
    )
    write_config(folder, exported.config, predictor.tokenizer)
    write_tokenizer(folder, predictor.tokenizer)
    if request.options.handler:
        write_handler(folder)
    write_record(folder, model, graphs, rows)
    (folder / "README.md").write_text(card(contents), encoding="utf-8")


def _headline(rows: Rows, metric: float) -> str:
    return f"{rows.task.titles[rows.task.headline]} {metric:.4f}"


def _told(graph: Graph, rows: Rows | None) -> str:
    """What was measured of a graph, as a sentence."""
    if rows is None:
        return ""
    same = "" if graph.agreement is None else f", {100 * graph.agreement:.1f} % of the model's answers"
    return f" On the rows {_headline(rows, graph.metric)}{same}."


if __name__ == "__main__":
    sys.exit(main())
