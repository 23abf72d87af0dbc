"""Computes again what a merge should hold, in float64 from the sources. It shares no arithmetic with the engine, and no plan.

reading     stored bytes as float64, in blocks of rows
merge       a merged folder with its recipe, its record, its base and its sources
sources     which stored tensor of a model stands for a name
adapters    what a PEFT adapter makes of a weight, by PEFT's definitions; stacks: what it makes of stacked experts;
            products: of factors
values      one source's version of one tensor, adapted
names       what the recipe makes of every tensor of the output, every parameter resolved
inputs      the inputs of one tensor, and a computed block
methods     the merge methods as their definitions state them; sparse: those that thin deltas first; selective: those that
            decide for each element
random      the documented generator of the random methods
compare     a computed block against a stored one: how far they may differ, and what a difference looks like
pass_over   all tensors, or a sample of each: what differs, what could not be computed
"""
