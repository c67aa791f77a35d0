"""How a source model's interface becomes the canonical one: settled sizes, fixed inputs, the batch as the first axis.

Files of operators and formats have no place here.
"""
