"""``percoedge bench``: where the time of a decode goes, on the device at hand.

case       one cell of the matrix, and the limits of its measurement
worker     a process of its own for every cell: its memory is its own, and its end harms no other
measure    the loop: warm-up, iterations, latencies, stages
probe      a backend that notes every call of another one
meters     peak memory and energy, where the machine tells
ceiling    what the device reaches: matrix products and memory traffic
onnx_graph, shapes, graph_cost   operations and bytes of a graph, counted from its ONNX file
machine    what was measured on
command    from arguments to results; tables and report write them down
"""
