"""Repairs what ONNX Runtime forgives in a file, without a change of its interface or its answers."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import helper

from converters.frontends.onnx.nodes import all_graphs, all_nodes, free_name, inner_graphs, taken_names
from converters.frontends.onnx.time_first import time_first

MIN_IR, MAX_IR = 8, 11  # of the file format: the oldest supported ONNX Runtime refuses newer ones
STANDARD = ("", "ai.onnx")


def repaired(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in the form that later steps expect.

    Weights are not inputs, domains that no node uses are not imported, a node comes after those that it reads, every
    output is made by a node of its own and is given out once, a default that ONNX's shape inference mistakes is stated,
    recurrent layers have the time first, scores that a ZipMap would give as maps stay a tensor, and the version of the
    file format is one that every supported ONNX Runtime reads.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(max(copy.ir_version, MIN_IR), MAX_IR)
    for node in all_nodes(copy.graph):
        if node.domain in STANDARD:
            node.domain = ""
    for node in (*all_nodes(copy.graph), *(node for function in copy.functions for node in function.node)):
        if node.op_type == "STFT" and not any(attribute.name == "onesided" for attribute in node.attribute):
            node.attribute.append(helper.make_attribute("onesided", 1))  # ONNX's inference takes 0 for the default
    _scores_of_maps(copy.graph)
    _keep_used_domains(copy)
    time_first(copy.graph)
    for graph in all_graphs(copy.graph):
        _drop_initializer_inputs(graph)
        _drop_repeated_initializers(graph)
        _sort_nodes(graph)
    give_outputs_nodes(copy.graph)
    return copy


def _scores_of_maps(graph: onnx.GraphProto) -> None:
    """Give the scores themselves, one number for each class, in place of maps from classes to scores."""
    outputs = {value.name: value for value in graph.output}
    for node in graph.node:
        if node.op_type == "ZipMap" and node.output[0] in outputs:
            outputs[node.output[0]].type.Clear()
            outputs[node.output[0]].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]


def _keep_used_domains(model: onnx.ModelProto) -> None:
    functions = [node.domain for function in model.functions for node in function.node]
    used = {"", *(node.domain for node in all_nodes(model.graph)), *functions}
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in STANDARD else entry.domain
        if domain in used:
            versions[domain] = max(versions.get(domain, 0), entry.version)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(versions.items()))


def _drop_initializer_inputs(graph: onnx.GraphProto) -> None:
    """Remove weights from the graph's inputs, where old exporters list them."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) < len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)


def _drop_repeated_initializers(graph: onnx.GraphProto) -> None:
    """Keep one of several weights with one name: the last, as ONNX Runtime does."""
    last = {tensor.name: index for index, tensor in enumerate(graph.initializer)}
    for index in reversed(range(len(graph.initializer))):
        if last[graph.initializer[index].name] != index:
            del graph.initializer[index]


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Move nodes that stand before the nodes whose results they read; a graph with a cycle stays as it is."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    reads = [{makers[name] for name in _names_read(node) if name in makers} for node in graph.node]
    if all(before < index for index, made in enumerate(reads) for before in made):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(reads))).static_order())
    except CycleError:
        return
    nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node and the graphs inside it read; names that an inner graph makes itself are among them."""
    inner = {name for graph in inner_graphs(node) for child in all_nodes(graph) for name in child.input}
    given = {value.name for one in inner_graphs(node) for graph in all_graphs(one) for value in graph.output}
    return {*node.input, *inner, *given}


def give_outputs_nodes(graph: onnx.GraphProto) -> None:
    """Make every output the result of a node, under its own name, once.

    An output that is a weight gets an Identity, and the weight another name. An output that is an input is renamed
    NAME_output, because a graph has one tensor of a name.
    """
    inputs, weights = {value.name for value in graph.input}, {tensor.name for tensor in graph.initializer}
    outputs = {value.name: value for value in reversed(graph.output)}
    if len(outputs) < len(graph.output):
        kept = list(reversed(outputs.values()))
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.output[:]
        graph.output.extend(copies)
    taken = taken_names(graph)
    for value in graph.output:
        if value.name in inputs:
            name, value.name = value.name, free_name(f"{value.name}_output", taken)
            graph.node.append(helper.make_node("Identity", [name], [value.name]))
        elif value.name in weights:
            inner = free_name(f"{value.name}_value", taken)
            _rename_reads(graph, value.name, inner)
            graph.node.append(helper.make_node("Identity", [inner], [value.name]))


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new
    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
