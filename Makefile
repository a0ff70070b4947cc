# Every target makes .venv ready first; that takes two minutes once and a moment afterwards.
.PHONY: demo slurm-demo test test-quick check setup
.NOTPARALLEL:

# Threads are part of the bits of a run, and several processes share the cores.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

PYTEST := .venv/bin/python -m pytest
QUICK := not distributed and not kill and not slow and not slurm

demo: setup
	@.venv/bin/lth run digits_lenet

# A Slurm cluster of two nodes on this machine, for as long as it takes.
slurm-demo:
	@tools/setup.sh slurm-wlm
	@slurm/local-cluster/demo

# What fits a core each runs side by side; what starts, kills or times processes runs alone, as does a cluster of Slurm.
test:
	@tools/setup.sh chromium dataset-fashion-mnist slurm-wlm shellcheck
	$(PYTEST) -n 2 -m "$(QUICK)"
	$(PYTEST) -m "distributed"
	$(PYTEST) -m "kill and not distributed"
	$(PYTEST) -m "slow and not kill and not distributed"
	$(PYTEST) -m "slurm"

test-quick: setup
	$(PYTEST) -n 2 -m "$(QUICK)"

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo --no-cache

setup:
	@tools/setup.sh
