#!/usr/bin/env python3
"""The layers, attentions or networks of a file in PyTorch, ONNX Runtime and OpenVINO, beside kernelbench.

    pip install torch torchvision onnxruntime onnx openvino numpy
    cargo build --release
    python3 benches/compare.py benches/shapes/conv_networks.csv --threads 2
    python3 benches/compare.py benches/shapes/conv_training.csv --threads 2 --pass backward
    python3 benches/compare.py benches/shapes/attention.csv --threads 2
    python3 benches/compare.py benches/shapes/models.csv --threads 2
    python3 benches/compare.py benches/shapes/models.csv --threads 2 --pass train

A library that is not installed is left out, and so is a direction that it has not: backward and train run in PyTorch
alone. A file with the columns name,model,batch,train is one of networks, those of networks.py. Their passes are forward
and train: forward, softmax cross-entropy, backward and a step of SGD with momentum 0.9.

How it is measured. Each library lives in a process of its own, so that no library's threads or allocator disturb
another's. For each layer all of them are asked in turn, --rounds times; the best call of all rounds counts,
because what slows a machine down for a while must not hit one library alone. A turn is two calls to warm up, and then
calls for a quarter of a second, at least five. Libraries that can prepare weights ahead of time do, as plans do here.
PyTorch is given the layer in both memory formats, and the faster one counts.

Speeds are GFLOP/s of a direct convolution, twice that for backward (data, weights and bias); of the products of an
attention that its pairs need, 2.5 times that for backward; those of networks are samples a second. ONNX Runtime and
OpenVINO know no grouped heads; OpenVINO is given static and dynamic shapes, and the faster kernel counts. The last column is
the speed of kernelbench over that of the fastest library: above 1, kernelbench is ahead.
"""

import argparse
import csv
import importlib.util
import json
import math
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

HEAD_FIELDS = "name batch heads kv_heads q_len kv_len head_dim causal".split()
NETWORK_FIELDS = "name model batch train".split()
FIELDS = "name n c h w k r s stride_h stride_w pad_h pad_w dilation_h dilation_w groups".split()
ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclass
class Layer:
    """One line of a shape file of convolutions."""

    kind, fields = "conv", FIELDS

    name: str
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int

    @property
    def x_shape(self):
        return self.n, self.c, self.h, self.w

    @property
    def w_shape(self):
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def y_shape(self):
        def outputs(size, taps, stride, pad, dilation):
            return (size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1

        return (
            self.n,
            self.k,
            outputs(self.h, self.r, self.stride_h, self.pad_h, self.dilation_h),
            outputs(self.w, self.s, self.stride_w, self.pad_w, self.dilation_w),
        )

    def operations(self, direction):
        forward = 2 * math.prod(self.y_shape) * math.prod(self.w_shape[1:])
        return forward if direction == "forward" else 2 * forward


@dataclass
class Heads:
    """One line of a shape file of attentions."""

    kind, fields = "attention", HEAD_FIELDS

    name: str
    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    causal: int

    @property
    def q_shape(self):
        return self.batch, self.heads, self.q_len, self.head_dim

    @property
    def kv_shape(self):
        return self.batch, self.kv_heads, self.kv_len, self.head_dim

    @property
    def plain(self):
        """Whether every head has keys of its own, and causal means the same from either corner."""
        return self.heads == self.kv_heads and (not self.causal or self.q_len == self.kv_len)

    def operations(self, direction):
        offset = self.kv_len - self.q_len
        pairs = sum(min(self.kv_len, offset + i + 1) for i in range(self.q_len))
        pairs = pairs if self.causal else self.q_len * self.kv_len
        forward = 4 * self.batch * self.heads * pairs * self.head_dim
        return forward if direction == "forward" else 2.5 * forward


@dataclass
class Network:
    """One line of a file of networks."""

    kind, fields = "model", NETWORK_FIELDS

    name: str
    model: str
    batch: int
    train: int

    def operations(self, direction):
        return 1e9 * self.batch  # samples a second are printed


def read(path):
    """The lines of a file, of whichever kind."""
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            kind = Heads if "head_dim" in row else Network if "model" in row else Layer
            texts = ("name", "model")
            yield kind(*(row[field] if field in texts else int(row[field]) for field in kind.fields))


def best_of(call):
    """The seconds of the fastest call."""
    call()
    call()
    fastest, calls, end = math.inf, 0, time.perf_counter() + 0.25
    while calls < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
        calls += 1
    return fastest


class PyTorch:
    module = "torch"
    directions = ("forward", "backward", "train")

    def __init__(self, threads):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)

    def attention(self, heads, direction):
        torch = self.torch
        q, k, v = (torch.rand(shape).sub_(0.5) for shape in (heads.q_shape, heads.kv_shape, heads.kv_shape))
        options = {"enable_gqa": heads.heads != heads.kv_heads}
        if heads.causal and heads.q_len == heads.kv_len:
            options["is_causal"] = True
        elif heads.causal:
            seen = torch.ones(heads.q_len, heads.kv_len, dtype=torch.bool)
            options["attn_mask"] = seen.tril(heads.kv_len - heads.q_len)
        forward = torch.nn.functional.scaled_dot_product_attention
        if direction == "forward":
            with torch.inference_mode():
                return best_of(lambda: forward(q, k, v, **options))
        inputs = tuple(x.requires_grad_() for x in (q, k, v))
        out = forward(*inputs, **options)
        dout = torch.rand_like(out).sub_(0.5)
        return best_of(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True))

    def conv(self, layer, direction):
        formats = (self.torch.contiguous_format, self.torch.channels_last)
        return min(self.in_format(layer, direction, memory) for memory in formats)

    def model(self, network, direction):
        formats = (self.torch.contiguous_format, self.torch.channels_last)
        return min(self.network_in_format(network, direction, memory) for memory in formats)

    def in_format(self, layer, direction, memory):
        torch = self.torch
        x = torch.rand(layer.x_shape).sub_(0.5).to(memory_format=memory)
        w = torch.rand(layer.w_shape).sub_(0.5).to(memory_format=memory)
        b = torch.rand(layer.k)
        stride, padding = (layer.stride_h, layer.stride_w), (layer.pad_h, layer.pad_w)
        dilation = (layer.dilation_h, layer.dilation_w)
        with torch.inference_mode():
            if direction == "forward":
                forward = torch.nn.functional.conv2d
                return best_of(lambda: forward(x, w, b, stride, padding, dilation, layer.groups))
            dy = torch.rand(layer.y_shape).sub_(0.5).to(memory_format=memory)
            backward = torch.ops.aten.convolution_backward.default
            rest = ([layer.k], stride, padding, dilation, False, (0, 0), layer.groups, (True, True, True))
            return best_of(lambda: backward(dy, x, w, *rest))

    def network_in_format(self, network, direction, memory):
        from networks import build

        torch = self.torch
        net, shape, classes = build(network.model)
        x = torch.randn(network.batch, *shape)
        if len(shape) == 3:
            x, net = x.to(memory_format=memory), net.to(memory_format=memory)
        if direction == "forward":
            net.eval()
            with torch.inference_mode():
                return best_of(lambda: net(x))
        net.train()
        labels = torch.randint(0, classes, (network.batch,))
        sgd = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, foreach=True)

        def step():
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(net(x), labels).backward()
            sgd.step()

        return best_of(step)


def exported(network):
    """The network as an ONNX file with its weights inside, and an input."""
    import networks

    return networks.exported(network.model, network.batch)


def onnx_model(layer):
    """The layer as an ONNX file with its weights inside, and an input."""
    import numpy
    import onnx

    random = numpy.random.default_rng(1)
    tensor = onnx.numpy_helper.from_array
    w = tensor(random.uniform(-0.5, 0.5, layer.w_shape).astype(numpy.float32), "w")
    b = tensor(random.uniform(-0.5, 0.5, layer.k).astype(numpy.float32), "b")
    node = onnx.helper.make_node(
        "Conv",
        ("x", "w", "b"),
        ("y",),
        strides=(layer.stride_h, layer.stride_w),
        pads=(layer.pad_h, layer.pad_w, layer.pad_h, layer.pad_w),
        dilations=(layer.dilation_h, layer.dilation_w),
        group=layer.groups,
    )
    kind = onnx.TensorProto.FLOAT
    x = onnx.helper.make_tensor_value_info("x", kind, layer.x_shape)
    y = onnx.helper.make_tensor_value_info("y", kind, layer.y_shape)
    graph = onnx.helper.make_graph([node], layer.name, [x], [y], [w, b])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model, random.uniform(-0.5, 0.5, layer.x_shape).astype(numpy.float32)


def attention_model(heads):
    """The attention as an ONNX file of ONNX Runtime's own operator, and its inputs."""
    import numpy
    import onnx

    hidden = heads.heads * heads.head_dim
    shapes = {
        "q": (heads.batch, heads.q_len, hidden),
        "k": (heads.batch, heads.kv_len, hidden),
        "v": (heads.batch, heads.kv_len, hidden),
    }
    node = onnx.helper.make_node(
        "MultiHeadAttention",
        tuple(shapes),
        ("y",),
        domain="com.microsoft",
        num_heads=heads.heads,
        unidirectional=heads.causal,
    )
    kind = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    y = onnx.helper.make_tensor_value_info("y", kind, shapes["q"])
    graph = onnx.helper.make_graph([node], heads.name, inputs, [y])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    random = numpy.random.default_rng(1)
    return model, {name: random.uniform(-0.5, 0.5, shape).astype(numpy.float32) for name, shape in shapes.items()}


class OnnxRuntime:
    module = "onnxruntime"
    directions = ("forward",)

    def __init__(self, threads):
        import onnxruntime

        self.onnxruntime = onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads

    def attention(self, heads, direction):
        if not heads.plain:
            return None
        model, inputs = attention_model(heads)
        session = self.onnxruntime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, x in inputs.items():
            binding.bind_ortvalue_input(name, self.onnxruntime.OrtValue.ortvalue_from_numpy(x))
        y = self.onnxruntime.OrtValue.ortvalue_from_shape_and_type(inputs["q"].shape, inputs["q"].dtype)
        binding.bind_ortvalue_output("y", y)
        return best_of(lambda: session.run_with_iobinding(binding))

    def model(self, network, direction):
        model, x = exported(network)
        session = self.onnxruntime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        return best_of(lambda: session.run(None, {"x": x}))

    def conv(self, layer, direction):
        model, x = onnx_model(layer)
        session = self.onnxruntime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        # Input and output stay where they are: no copy is timed.
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", self.onnxruntime.OrtValue.ortvalue_from_numpy(x))
        y = self.onnxruntime.OrtValue.ortvalue_from_shape_and_type(layer.y_shape, x.dtype)
        binding.bind_ortvalue_output("y", y)
        return best_of(lambda: session.run_with_iobinding(binding))


class OpenVino:
    module = "openvino"
    directions = ("forward",)

    def __init__(self, threads):
        import openvino

        self.openvino, self.core = openvino, openvino.Core()
        self.config = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }

    def attention(self, heads, direction):
        import numpy
        from openvino import opset13

        if not heads.plain:
            return None
        shapes = [heads.q_shape, heads.kv_shape, heads.kv_shape]
        random = numpy.random.default_rng(1)
        inputs = [random.uniform(-0.5, 0.5, shape).astype(numpy.float32) for shape in shapes]

        def declared(shapes):
            q, k, v = (opset13.parameter(shape, numpy.float32) for shape in shapes)
            attention = opset13.scaled_dot_product_attention(q, k, v, causal=bool(heads.causal))
            model = self.openvino.Model([attention], [q, k, v])
            request = self.core.compile_model(model, "CPU", self.config).create_infer_request()
            for index, x in enumerate(inputs):
                request.set_input_tensor(index, self.openvino.Tensor(x, shared_memory=True))
            return best_of(request.infer)

        return min(declared(shapes), declared([(-1, shape[1], -1, shape[3]) for shape in shapes]))

    def conv(self, layer, direction):
        return self.seconds(*onnx_model(layer))

    def model(self, network, direction):
        return self.seconds(*exported(network))

    def seconds(self, model, x):
        request = self.core.compile_model(self.core.read_model(model, b""), "CPU", self.config).create_infer_request()
        request.set_input_tensor(self.openvino.Tensor(x, shared_memory=True))
        return best_of(request.infer)


LIBRARIES = {"pytorch": PyTorch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def serve(pipe, name, threads):
    """The loop of a library's process: a layer comes in, seconds or an error go out."""
    library = LIBRARIES[name](threads)
    while job := pipe.recv():
        try:
            layer, direction = job
            pipe.send((getattr(library, layer.kind)(layer, direction), None))
        except Exception as error:  # whatever a library dislikes about a layer is said, and the layer left out
            pipe.send((None, f"{type(error).__name__}: {error}"))


class Process:
    """A library in a process of its own."""

    def __init__(self, name, threads):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        context.Process(target=serve, args=(far_end, name, threads), daemon=True).start()

    def seconds(self, layer, direction):
        self.pipe.send((layer, direction))
        seconds, error = self.pipe.recv()
        if error:
            print(f"{self.name} left {layer.name} out: {error}", file=sys.stderr)
        return seconds


class KernelBench:
    """One call of kernelbench for each turn."""

    name = "kernelbench"

    def __init__(self, program, threads):
        self.program, self.options = program, ["--format", "json", "--threads", str(threads)]

    def seconds(self, layer, direction):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "layer.csv")
            values = (str(getattr(layer, field)) for field in layer.fields)
            path.write_text(",".join(layer.fields) + "\n" + ",".join(values) + "\n")
            command = [self.program, layer.kind, *self.options, "--shapes", str(path), "--pass", direction]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"kernelbench failed on {layer.name}", file=sys.stderr)
            return None
        return json.loads(done.stdout)["seconds_min"]


def geometric_mean(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", help="a CSV file such as benches/shapes/conv_networks.csv")
    parser.add_argument("--pass", dest="direction", choices=("forward", "backward", "train"), default="forward")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only layers whose name contains this")
    parser.add_argument("--kernelbench", default=str(ROOT / "target/release/kernelbench"), help="the program")
    parser.add_argument("--out", help="also write the best seconds to this JSON file")
    args = parser.parse_args()

    layers = [layer for layer in read(args.shapes) if args.only in layer.name]
    layers = [layer for layer in layers if args.direction != "train" or layer.train]
    if not layers:
        sys.exit(f"no layer of {args.shapes} has {args.only!r} in its name")
    contenders = [
        Process(name, args.threads)
        for name, library in LIBRARIES.items()
        if args.direction in library.directions and importlib.util.find_spec(library.module)
    ] + [KernelBench(args.kernelbench, args.threads)]

    unit = "samples/s" if layers[0].kind == "model" else "GFLOP/s"
    print(f"{args.direction}, {args.threads} threads, {unit}\n")
    print(f"{'layer':24}" + "".join(f"{contender.name:>14}" for contender in contenders) + f"{'ratio':>9}")
    results, ratios = [], {}
    for layer in layers:
        best = {}
        for _ in range(args.rounds):
            for contender in contenders:
                seconds = contender.seconds(layer, args.direction)
                if seconds:
                    best[contender.name] = min(seconds, best.get(contender.name, math.inf))
                time.sleep(0.05)  # threads that spin for work fall asleep before the next one's turn
        cells = ""
        for contender in contenders:
            seconds = best.get(contender.name)
            cells += f"{layer.operations(args.direction) / seconds / 1e9:14.1f}" if seconds else f"{'-':>14}"
        others = [seconds for name, seconds in best.items() if name != KernelBench.name]
        if others and KernelBench.name in best:
            ratios[layer.name] = min(others) / best[KernelBench.name]
            cells += f"{ratios[layer.name]:9.2f}"
        print(f"{layer.name:24}{cells}", flush=True)
        results.append({"name": layer.name, "seconds": best})
    if ratios:
        worst = min(ratios, key=ratios.get)
        ahead = sum(ratio >= 1 for ratio in ratios.values())
        print(f"\ngeometric mean {geometric_mean(ratios.values()):.2f}, worst {ratios[worst]:.2f} ({worst}), "
              f"ahead on {ahead} of {len(ratios)}")
    if args.out:
        settings = {"pass": args.direction, "threads": args.threads, "rounds": args.rounds}
        pathlib.Path(args.out).write_text(json.dumps({**settings, "layers": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
