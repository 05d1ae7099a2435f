"""LoRA: adapters read from PEFT directories, and added to a model's linear maps row by row of a step.

    y = W x + B (scale * (A x))        A [rank, k], B [n, rank]

Each row of a step names the adapter that it goes through, and all adapters of a step are computed together:
first A x of every row, then B added where the base's product is put down.
"""
