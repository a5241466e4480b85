"""Whether a task's rows can be scored, found out when they load and before any model does.

`examine` looks at every row of a data set; what it finds is a `faults.Fault`, and `faults.settle`
refuses the data or leaves whole questions out. Knows tables, images and lmms-eval's task objects;
must not know models, methods or the store.
"""
