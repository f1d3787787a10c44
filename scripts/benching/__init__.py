"""The parts of scripts/bench.py; start with that file.

table       a row: figure, goal, verdict; how rows are printed and written
arithmetic  from what was seen to a figure; pure, so that planted data can test it
client      HTTP over plain sockets, one thread, as few cycles as possible
processes   the servers and the raw loop, each in a process of its own
rawloop     that process: libloader.llama without engine, front or HTTP
prose       text of a wished length, never the same twice
counters    loaded into the server's processes by one row: what the pipe costs
speed, prefixes, costs      the rows
"""
