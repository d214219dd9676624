"""Keep only the metadata that qdeploy writes: the exporter's names source files of the machine that exported."""

from __future__ import annotations

import onnx_ir as ir


def replace(model: ir.Model, metadata: dict[str, str]) -> None:
    """Clear all metadata and doc strings, then set the model's own."""
    model.producer_name, model.producer_version = "qdeploy", None
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.name = "qdeploy"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for function in list(model.functions):
        del model.functions[function]
    model.metadata_props.update(metadata)
