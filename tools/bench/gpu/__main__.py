"""`python -m tools.bench.gpu`: the same as `python -m tools.bench gpu`."""

from tools.bench.gpu.command import gpu

if __name__ == "__main__":
    gpu()
