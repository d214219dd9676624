"""The line from a recipe to a report, on one page.

    recipe -> train -> model (capture, fold, place, quantize, export) -> verify -> bundle -> bench -> report

``plan`` says what there is to do and what each step depends on; ``build`` does it. A launcher schedules the same
stages. Every stage but the bench is cached by content: see core/stages.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy import __version__, runner
from qdeploy.bench import merge
from qdeploy.bench import schedule as bench
from qdeploy.bundle.pack import pack
from qdeploy.core import plugins, records, sources
from qdeploy.core.errors import QDeployError, RefusedError
from qdeploy.core.files import require_writable, sha256, write_atomic, write_json
from qdeploy.core.records import (
    Contrast,
    HalfPrecision,
    Interval,
    Layer,
    Metric,
    Refusal,
    Results,
    SplitMetric,
    Variant,
)
from qdeploy.core.stages import Folders, Stage, execute, folder_of, is_done, key_of
from qdeploy.export import artifact
from qdeploy.quant import qat
from qdeploy.quant.rules import Rule
from qdeploy.recipe.schema import STORAGE, Recipe, VariantRecipe
from qdeploy.reports import html
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.train import checkpoint
from qdeploy.train.fit import device_kind, fit
from qdeploy.train.reference import find_file, load_model, source_files
from qdeploy.verify.artifact import signature
from qdeploy.verify.evaluate import agreement, batch_of, difference, evaluate, fingerprint, gap
from qdeploy.verify.prove import layer_records, prove

LIBRARIES = ("torch", "torchvision", "lightning-fabric", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Events:
    """What a caller wants to hear of a build: stages as they start, training as it goes on, and a line of text."""

    stage: Callable[[Stage], None] = lambda _: None
    training: Callable[[Any], None] = lambda _: None
    bench: Callable[[str, float], None] | None = None


def build(recipe: Recipe, out: Path, *, events: Events = Events(), measure: bool = True) -> Results:
    """Run a recipe's plan into the folder ``out`` and return its results.

    ``out`` gets the float32 checkpoint, a bundle a variant, results.json and report.html. ``measure`` times the
    bundles that changed since the last build; times of unchanged bundles are kept.
    """
    recipe, refusals = _representable(recipe)
    stages = plan(recipe, events)
    _rehearse(recipe, [stage.name for stage in stages if not is_done(stage, out / "stages")])
    folders = execute(stages, out / "stages", on_start=events.stage)
    _publish(folders["train"] / "checkpoint.safetensors", out)
    previous = _previous(out / "results.json")
    results = merge.keep_latencies(replace(_results(recipe, folders, out), refusals=refusals), previous)
    _write(results, previous, out)  # what is timed may be stopped: the bundles that are there now have these results
    if measure and not merge.measured(results):
        require_writable(out, "It gets the times.")
        measured = bench.run(
            [out / variant.bundle for variant in results.variants], threads=recipe.bench.threads,
            batches=recipe.bench.batch, seconds=recipe.bench.seconds, baseline=results.baseline,
            pairs=merge.pairs(results), progress=events.bench,
        )  # fmt: skip
        _write(timed := merge.with_latencies(results, measured), results, out)
        return timed
    return results


def _write(results: Results, previous: Results | None, out: Path) -> None:
    """The report and then results.json, if they are not those of ``previous``: stopped between, both are made again."""
    report = out / "report.html"
    if results != previous or not report.is_file():
        html.write(results, report)
        records.save(results, out / "results.json")


def _previous(path: Path) -> Results | None:
    """The results of an earlier build; None where there are none, or none that this version can read."""
    try:
        return records.load(Results, path)
    except QDeployError:
        return None  # it is written again, from the stages


def pending(recipe: Recipe, out: Path) -> list[Stage]:
    """The stages of a plan that a build into ``out`` would run."""
    recipe, _ = _representable(recipe)
    return [stage for stage in plan(recipe, Events()) if not is_done(stage, out / "stages")]


def histories(recipe: Recipe, out: Path) -> dict[str, dict[str, Any]]:
    """What training left of its epochs in a build's folder, by stage: "train", "qat-int4/qat"."""
    recipe, _ = _representable(recipe)
    files = {stage.name: folder_of(stage, out / "stages") / "history.json" for stage in plan(recipe, Events())}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def _representable(recipe: Recipe) -> tuple[Recipe, tuple[Refusal, ...]]:
    """The recipe without the variants that cannot be made, and why they cannot.

    RefusedError: nothing but the baseline is left.
    """
    refusals, errors = [], []
    for name, variant in recipe.variants.items():
        try:
            if variant.method == "qat":
                weights, activations = _trained_widths(recipe, variant)
                qat.require_widths(variant.fake_quant, weight_bits=weights, activation_bits=activations)
                if qat.learns_activations(variant.fake_quant):
                    qat.require_activations(variant.fake_quant, _placed(recipe, variant).placement)
        except RefusedError as error:
            refusals.append(Refusal(name, variant.method, error.message, error.kind, variant.describe()))
            errors.append(error)
    refused = {refusal.name for refusal in refusals}
    variants = {name: variant for name, variant in recipe.variants.items() if name not in refused}
    if refusals and list(variants) == [recipe.baseline]:
        raise type(errors[0])(f"Variant {refusals[0].name}: {refusals[0].reason}", "Choose another width or method.")
    contrasts = tuple(pair for pair in recipe.contrasts if set(pair) <= set(variants))
    return recipe.model_copy(update={"variants": variants, "contrasts": contrasts}), tuple(refusals)


def _trained_widths(recipe: Recipe, variant: VariantRecipe) -> tuple[set[int], set[int]]:
    """The bits of the weights and activations that a variant's fake quantizer is to be made for."""
    if not variant.rules:
        return {variant.weights.bits}, {variant.activations.bits}
    layers = [layer for layer in _placed(recipe, variant).placement.layers if not layer.exempt]
    return {layer.weight.scheme.bits for layer in layers}, {layer.input.scheme.bits for layer in layers if layer.input}


def _placed(recipe: Recipe, variant: VariantRecipe) -> artifact.Placed:
    """The untrained model as the variant quantizes it, on an input of zeros: which layers there are and their bits."""
    dataset = plugins.load("dataset", recipe.data.name)(**recipe.data.options)
    raw = np.zeros((2, *dataset.raw_shape), dataset.raw_dtype)
    (example,) = artifact.batches_of(runner.preprocess(raw, dataset.preprocessing), 2)
    model = load_model(recipe.model.factory, base=recipe.base, **recipe.model.arguments)
    return artifact.placed(model.eval(), example, **_bits(variant))


def _rehearse(recipe: Recipe, ahead: list[str]) -> None:
    """Capture and place, before hours of training, what is to be quantized.

    A model that cannot be, or a rule for a layer that is not there, is an error now. ``ahead``: the stages to run.
    """
    for name, variant in recipe.variants.items():
        if variant.quantizes and f"{name}/model" in ahead and ("train" in ahead or variant.rules):
            _placed(recipe, variant)
            ahead = [stage for stage in ahead if stage != "train"]  # once is enough where there are no rules


def plan(recipe: Recipe, events: Events) -> list[Stage]:
    """The stages of a recipe, in an order in which they can run."""
    dataset = plugins.load("dataset", recipe.data.name)(**recipe.data.options)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    trained = _train_stage(recipe, dataset, versions, events)
    stages = [trained]
    baseline = recipe.baseline
    exporter, prover = sources.digest("qdeploy.export.artifact"), sources.digest("qdeploy.verify.prove")
    packer = sources.digest("qdeploy.bundle.pack", "qdeploy.runner")
    for name in sorted(recipe.variants, key=lambda name: name != baseline):  # the baseline first: others refer to it
        variant = recipe.variants[name]
        weights = trained
        if variant.method == "qat":
            weights = _qat_stage(recipe, name, variant, dataset, trained, events)
            stages.append(weights)
        key = key_of(weights.key, variant.dump(), _used(variant), exporter)
        inputs = dict.fromkeys((trained.name, weights.name))
        made = Stage(f"{name}/model", key, tuple(inputs), partial(_model, recipe, variant, dataset))
        reference = (f"{baseline}/model", f"{baseline}/verify") if name != baseline else ()
        keys = [stage.key for stage in stages if stage.name in reference]
        key = key_of(made.key, keys, _source("metric", dataset.metric), prover)
        verified = Stage(f"{name}/verify", key, (made.name, *reference), partial(_verify, dataset))
        key = key_of(verified.key, recipe.name, name, __version__, packer)
        run = partial(_bundle, recipe, name, variant, dataset, versions)
        stages += [made, verified, Stage(f"{name}/bundle", key, (made.name, verified.name), run)]
        stages += [_also_stage(name, split, dataset, made, verified) for split in recipe.also_evaluate]
    return stages + _contrast_stages(recipe, dataset, {stage.name: stage.key for stage in stages})


def _also_stage(name: str, split: str, dataset: Any, made: Stage, verified: Stage) -> Stage:
    """The deployed metric on another split, and how far it lies from the evaluation split's."""
    key = key_of(verified.key, split)
    return Stage(f"{name}/on-{split}", key, (made.name, verified.name), partial(_also, dataset, split))


def _contrast_stages(recipe: Recipe, dataset: Any, keys: dict[str, str]) -> list[Stage]:
    """A stage for each pair of variants that is compared: it reads the answers of both."""
    stages = []
    for first, second in recipe.contrasts:
        inputs = (f"{first}/verify", f"{second}/verify")
        key = key_of([keys[name] for name in inputs], _source("metric", dataset.metric))
        stages.append(Stage(f"{first}/against-{second}", key, inputs, partial(_contrast, dataset)))
    return stages


def _used(variant: VariantRecipe) -> list[str]:
    """The sources of the plugins that a variant names: module names; a user's own file counts by its content."""
    if not variant.quantizes:
        return []
    chosen = [("rounding", variant.rounding.name)]
    if variant.method == "qat":
        chosen = [("fake quant", name) for name in (variant.fake_quant, qat.EXEMPT)]
    return [_source(kind, name) for kind, name in (("observer", variant.activations.observer), *chosen)]


def _source(kind: str, name: str) -> str:
    return sources.plugin_digest(plugins.KINDS[kind].package, name)


def _train_stage(recipe: Recipe, dataset: Any, versions: dict[str, str], events: Events) -> Stage:
    """Training, or reading a checkpoint of the user's: both leave checkpoint.safetensors."""
    code = [sources.file_digest(path) for path in source_files(recipe.model.factory, recipe.base)]
    data = [
        recipe.data.name,
        _source("dataset", recipe.data.name),
        dataset.fingerprint(),
        _source("metric", dataset.metric),
    ]
    common = [recipe.model.dump(), code, data, versions]
    if recipe.model.checkpoint is not None:
        path = find_file(str(recipe.model.checkpoint), recipe.base)
        key = key_of(common, sha256(path), sources.digest("qdeploy.train.checkpoint"))
        return Stage("train", key, (), partial(_import_checkpoint, recipe, path))
    assert recipe.train is not None
    options = recipe.train.dump()
    key = key_of(common, options, device_kind(options["device"]), sources.digest("qdeploy.train.fit"))
    return Stage("train", key, (), partial(_train, recipe, dataset, options, events))


def _train(recipe: Recipe, dataset: Any, options: dict[str, Any], events: Events, folder: Path, _: Folders) -> None:
    model = load_model(recipe.model.factory, base=recipe.base, seed=options["seed"], **recipe.model.arguments)
    started = time.perf_counter()
    result = fit(model, dataset, progress=events.training, **options)
    checkpoint.save(folder / "checkpoint.safetensors", result.state_dict)
    write_json(folder / "history.json", {
        "best_epoch": result.epoch, "metric": result.metric, "epochs": result.history,
        "seconds": time.perf_counter() - started,
    })  # fmt: skip


def _import_checkpoint(recipe: Recipe, path: Path, folder: Path, _: Folders) -> None:
    model = load_model(recipe.model.factory, base=recipe.base, **recipe.model.arguments)
    checkpoint.load(path, model)
    checkpoint.save(folder / "checkpoint.safetensors", model.state_dict())


def _qat_stage(
    recipe: Recipe, name: str, variant: VariantRecipe, dataset: Any, trained: Stage, events: Events
) -> Stage:
    """Training on with fake quantizers; leaves checkpoint.safetensors of the graph."""
    settings = {key: value for key, value in variant.dump().items() if key != "packing"}
    code = sources.digest("qdeploy.graph.capture", "qdeploy.graph.normalize", "qdeploy.quant.qat", "qdeploy.train.fit")
    line = sources.file_digest(Path(artifact.__file__))  # without what it imports: how it exports trains nothing
    key = key_of(trained.key, settings, device_kind(variant.train.device), _used(variant), code, line)
    return Stage(f"{name}/qat", key, (trained.name,), partial(_qat, recipe, variant, dataset, events))


def _qat(recipe: Recipe, variant: VariantRecipe, dataset: Any, events: Events, folder: Path, inputs: Folders) -> None:
    started = time.perf_counter()
    model = _float_model(recipe, inputs["train"])
    _, graph, _ = _trainable(model, variant, dataset)
    options = variant.train.dump()
    result = fit(
        graph, dataset, teacher=model, before_epoch=qat.Schedule(graph), progress=events.training, **options
    )  # fmt: skip
    checkpoint.save(folder / "checkpoint.safetensors", result.state_dict)
    seconds = time.perf_counter() - started
    write_json(folder / "history.json", {
        "kept_epoch": result.epoch, "metric": result.metric, "epochs": result.history, "seconds": seconds,
    })  # fmt: skip


def _trainable(model: Any, variant: VariantRecipe, dataset: Any) -> tuple[artifact.Placed, Any, Any]:
    """The placed graph, the module to train, and an example of its input."""
    example, batches = _calibration(variant, dataset)
    made = artifact.placed(model, example, **_bits(variant))
    activations = variant.activations
    graph = artifact.trainable(
        made, batches, fake_quant=variant.fake_quant, activation_observer=activations.observer,
        observer_options=activations.options, portable=variant.portable,
    )  # fmt: skip
    return made, graph, example


def _model(recipe: Recipe, variant: VariantRecipe, dataset: Any, folder: Path, inputs: Folders) -> None:
    started = time.perf_counter()
    model = _float_model(recipe, inputs["train"])
    parameters, before = sum(parameter.numel() for parameter in model.parameters()), 0.0
    if variant.method == "qat":
        (trained,) = (folder for name, folder in inputs.items() if name != "train")
        placed, graph, example = _trainable(model, variant, dataset)
        checkpoint.load(trained / "checkpoint.safetensors", graph)
        made = artifact.trained(graph, placed, example, portable=variant.portable, packing=variant.packing)
        before = json.loads((trained / "history.json").read_text())["seconds"]
    elif variant.method == "ptq":
        example, batches = _calibration(variant, dataset)
        made = artifact.quantized(
            model, example, batches, weight_observer=variant.weights.observer,
            activation_observer=variant.activations.observer, observer_options=variant.activations.options,
            weight_grid=variant.weights.grid, rounding=variant.rounding.name,
            rounding_options=variant.rounding.options, equalized=variant.equalize,
            bias_correction=variant.bias_correction, learn_ranges=variant.learn_ranges, portable=variant.portable,
            packing=variant.packing, **_bits(variant),
        )  # fmt: skip
    else:
        example, _ = _calibration(variant, dataset)
        made = artifact.float32(model, example, storage=STORAGE[variant.method])  # type: ignore[arg-type]
    write_atomic(folder / "model.onnx", made.model)
    write_json(folder / "layers.json", {
        "weights": {name: records.to_json(value) for name, value in made.weights.items()},
        "activations": {name: records.to_json(value) for name, value in made.activations.items()},
        "float_reasons": made.float_reasons, "seconds": before + time.perf_counter() - started,
        "half_precision": [records.to_json(weight) for weight in made.half_precision], "parameters": parameters,
    })  # fmt: skip


def _float_model(recipe: Recipe, folder: Path) -> Any:
    model = load_model(recipe.model.factory, base=recipe.base, **recipe.model.arguments)
    checkpoint.load(folder / "checkpoint.safetensors", model)
    return model.eval()


def _calibration(variant: VariantRecipe, dataset: Any) -> tuple[Any, list[Any]]:
    """An example input, of the shape that is deployed, and the calibration samples in batches."""
    raw, _ = dataset.split("calibration")
    samples = runner.preprocess(raw[: variant.calibration.samples], dataset.preprocessing)
    return _example(dataset), artifact.batches_of(samples, variant.calibration.batch)


def _example(dataset: Any) -> Any:
    """Two preprocessed samples of zeros."""
    zeros = np.zeros((2, *dataset.raw_shape), dataset.raw_dtype)
    return artifact.batches_of(runner.preprocess(zeros, dataset.preprocessing), 2)[0]


def _bits(variant: VariantRecipe) -> dict[str, Any]:
    """Which layer gets how many bits, as keyword arguments."""
    rules = [
        Rule(rule.match, *(None if part is None else part.bits for part in (rule.weights, rule.activations)))
        for rule in variant.rules if rule.method is None
    ]  # fmt: skip
    return {
        "weight_bits": variant.weights.bits, "activation_bits": variant.activations.bits,
        "first_last_bits": variant.first_last_bits, "rules": rules, "keep_float": variant.keep_float,
        "dynamic": variant.activations.range == "dynamic",
    }  # fmt: skip


def _verify(dataset: Any, folder: Path, inputs: Folders) -> None:
    (made, *rest) = inputs.values()
    raw, targets = dataset.split("evaluation")
    metric = plugins.load("metric", dataset.metric)()
    proof = prove(
        (made / "model.onnx").read_bytes(), raw, targets, preprocessing=dataset.preprocessing, metric=metric,
        float_model=(rest[0] / "model.onnx").read_bytes() if rest else None,
    )  # fmt: skip
    rows, decisions = proof.evaluation.rows, proof.evaluation.decisions
    delta, agreed = None, None
    if rest:
        with np.load(rest[1] / "evaluation.npz") as baseline:
            delta = records.to_json(difference(rows, baseline["rows"], metric))
            agreed = agreement(decisions, baseline["decisions"])
    layers = json.loads((made / "layers.json").read_text())
    shown = {kind: {n: records.from_json(artifact.QuantizedValue, v) for n, v in layers[kind].items()}
             for kind in ("weights", "activations")}  # fmt: skip
    np.savez(folder / "evaluation.npz", rows=rows, decisions=decisions)
    np.savez(folder / "golden.npz", **proof.golden)  # type: ignore[arg-type]
    write_json(folder / "proof.json", {
        "metric": records.to_json(proof.evaluation.metric), "delta": delta, "agreement": agreed,
        "fingerprint": fingerprint(raw, targets), "portability": records.to_json(proof.portability),
        "integer_mac_share": proof.coverage.integer_mac_share, "samples": proof.parity.samples,
        "outputs_checked": proof.parity.outputs_checked, "differing_codes": proof.parity.differing_codes,
        "comparison": proof.comparison, "tolerance": proof.tolerance,
        "layers": [records.to_json(r) for r in layer_records(proof, float_reasons=layers["float_reasons"], **shown)],
    })  # fmt: skip


def _also(dataset: Any, split: str, folder: Path, inputs: Folders) -> None:
    made, verified = inputs.values()
    metric = plugins.load("metric", dataset.metric)()
    raw, targets = dataset.split(split)
    runtime, layers = Runtime((made / "model.onnx").read_bytes()), _json(verified / "proof.json")["layers"]
    batch = batch_of(layer["kernel"] for layer in layers)
    found = evaluate(runtime, raw, targets, preprocessing=dataset.preprocessing, metric=metric, batch=batch)
    with np.load(verified / "evaluation.npz") as judged:
        apart = gap(found.rows, judged["rows"], metric)
    write_json(folder / "metric.json", records.to_json(SplitMetric(split, found.metric, apart)))


def _contrast(dataset: Any, folder: Path, inputs: Folders) -> None:
    metric = plugins.load("metric", dataset.metric)()
    first, second = (np.load(verified / "evaluation.npz") for verified in inputs.values())
    with first, second:
        apart = difference(first["rows"], second["rows"], metric)
        alike = agreement(first["decisions"], second["decisions"])
    write_json(folder / "contrast.json", {"difference": records.to_json(apart), "agreement": alike})


def _bundle(
    recipe: Recipe,
    name: str,
    variant: VariantRecipe,
    dataset: Any,
    versions: dict[str, str],
    folder: Path,
    inputs: Folders,
) -> None:
    made, verified = inputs.values()
    model, proof = (made / "model.onnx").read_bytes(), json.loads((verified / "proof.json").read_text())
    with np.load(verified / "golden.npz") as arrays:
        golden = dict(arrays)
    tensors = signature(model)
    raw: dict[str, Any] = {"dtype": dataset.raw_dtype, "shape": list(dataset.raw_shape)}
    if (raw_range := getattr(dataset, "raw_range", None)) is not None:
        raw["range"] = list(raw_range)
    covered = ("name", "op", "kernel", "integer", "reason", "macs")
    pack(
        folder / f"{name}.qdeploy.zip", name=name, recipe=recipe.name, method=variant.method,
        inputs=[{**tensor, "raw": raw, "preprocessing": dataset.preprocessing} for tensor in tensors["inputs"]],
        outputs=tensors["outputs"], task=dataset.task, classes=dataset.classes,
        quantization=variant.describe(), versions={"qdeploy": __version__, **versions},
        model=model, golden=golden, comparison=proof["comparison"], tolerance=proof["tolerance"],
        metric={**proof["metric"], "dataset": recipe.data.name, "split": "evaluation",
                "fingerprint": proof["fingerprint"]},
        coverage={"integer_mac_share": proof["integer_mac_share"],
                  "layers": [{key: layer[key] for key in covered} for layer in proof["layers"] if layer["macs"]]},
        parity={key: proof[key] for key in ("samples", "outputs_checked", "differing_codes")},
        portability=proof["portability"],
    )  # fmt: skip


def _publish(path: Path, out: Path) -> None:
    """Copy a stage's file beside results.json, unless it is there already."""
    target = out / path.name
    if not target.is_file() or sha256(target) != sha256(path):
        write_atomic(target, path.read_bytes())


def _results(recipe: Recipe, folders: dict[str, Path], out: Path) -> Results:
    """Publish the bundles beside results.json and gather what was measured."""
    sizes = {name: (folders[f"{name}/model"] / "model.onnx").stat().st_size for name in recipe.variants}
    variants = []
    for name, variant in recipe.variants.items():
        proof = _json(folders[f"{name}/verify"] / "proof.json")
        made = _json(folders[f"{name}/model"] / "layers.json")
        bundle = f"{name}.qdeploy.zip"
        _publish(folders[f"{name}/bundle"] / bundle, out)
        also = [_json(folders[f"{name}/on-{split}"] / "metric.json") for split in recipe.also_evaluate]
        variants.append(Variant(
            name=name, method=variant.method, metric=records.from_json(Metric, proof["metric"]),
            delta=records.from_json(Interval, proof["delta"]) if proof["delta"] else None,
            agreement=proof["agreement"], size_bytes=sizes[name], compression=sizes[recipe.baseline] / sizes[name],
            bundle=bundle, bundle_sha256=sha256(out / bundle), integer_mac_share=proof["integer_mac_share"],
            differing_codes=proof["differing_codes"],
            layers=tuple(records.from_json(Layer, layer) for layer in proof["layers"]), seconds=made["seconds"],
            unportable=sum(map(len, proof["portability"].values())) if proof["integer_mac_share"] else None,
            quantization=variant.describe(), comparison=proof["comparison"],
            half_precision=tuple(records.from_json(HalfPrecision, weight) for weight in made["half_precision"]),
            also=tuple(records.from_json(SplitMetric, found) for found in also),
        ))  # fmt: skip
    return Results(
        name=recipe.name, baseline=recipe.baseline, variants=tuple(variants), dataset=recipe.data.name,
        created_by=f"qdeploy {__version__}", contrasts=tuple(_contrasts(recipe, folders)),
        parameters=_json(folders[f"{recipe.baseline}/model"] / "layers.json")["parameters"],
        training_seconds=_training_seconds(folders["train"]), profile=recipe.profile,
        data_options={key: value for key, value in recipe.data.options.items() if key not in records.PLACES},
    )  # fmt: skip


def _contrasts(recipe: Recipe, folders: dict[str, Path]) -> Iterator[Contrast]:
    for first, second in recipe.contrasts:
        found = _json(folders[f"{first}/against-{second}"] / "contrast.json")
        yield Contrast(first, second, records.from_json(Interval, found["difference"]), found["agreement"])


def _training_seconds(folder: Path) -> float | None:
    """How long training took; None for a checkpoint of the user's, and where an older version did not note it."""
    history = folder / "history.json"
    return _json(history).get("seconds") if history.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    """A stage's own file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
