"""Write equal things in one way: the form that onnxruntime has an integer kernel for.

* means over all of height and width, and average pools to 1x1, are global average pooling; adaptive pools are plain
  ones where their windows are equal, and nothing where input and output agree (pooling.py);
* a linear layer on [N, ..., K] is a reshape, a 2-D linear layer (Gemm) and a reshape back (linear.py);
* an LSTM is one node for each of its layers, with weights that are stored as ONNX wants them (recurrent.py);
* a reshape has a constant shape, with -1 for the batch; a split is slices; a clip (ReLU) stands before what only
  moves values, where a quantizer absorbs it (moves.py).
"""

from __future__ import annotations

from torch import fx

from qdeploy.graph import linear, moves, pooling, recurrent


def normalize(graph_module: fx.GraphModule) -> None:
    """Rewrite the graph in place."""
    recurrent.split_layers(graph_module)
    pooling.normalize(graph_module.graph)
    linear.flatten_linears(graph_module.graph)
    moves.normalize(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
