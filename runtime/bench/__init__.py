"""``percoedge bench``: where the time of a decode goes, on the device at hand.

case       one cell of the matrix, and the limits of its measurement
worker     a process of its own for every cell: its memory is its own, and its end harms no other
measure    the loop: warm-up, iterations, latencies, stages
probe      a backend that notes every call of another one
lanes      more decodes at the same time
alone      each graph by itself, and its layers
meters     memory, clocks and energy, where the machine tells
ceiling    what the device reaches: matrix products and memory traffic
rates      how fast each graph ran, and what share that is of the ceiling
machine    what was measured on
tables     results as tables and CSV

What a graph takes was counted when it was exported and stands in the manifest. Charts are drawn
elsewhere, from what ``percoedge bench --json`` printed: see benchmarks/report.
"""
