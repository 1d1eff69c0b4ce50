# `make demo` and `make test` need Python 3.11 or newer and make; on 3.13 a redis-server, too. Each makes what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types chaos fleet failover soak bench clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); say make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Making $(VENV): torch is a few GB, this takes a minute or more the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

# make demo [IMAGES=FOLDER] [BACKBONE=NAME] [LAYERS=A,B] [ARGS="--json FILE --serve ..."]
demo: $(READY)
	@$(BIN)/mhpc-worker demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(BACKBONE),--backbone "$(BACKBONE)") \
		$(if $(LAYERS),--layers "$(LAYERS)") $(ARGS)

# make test [ARGS=tests/mhpc] [JOBS=0]: on two cores three at a time take half as long as one, since many tests wait.
# Files in their order, so that the longest are not the last; one stays with one process, whose fixtures are made once.
JOBS ?= 3
test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# make chaos [ARGS="--kills 300 --images 20000 --seed 0"]: a worker is killed again and again, and all is counted
chaos: $(READY)
	$(BIN)/python -m tests.worker.faults.chaos $(ARGS)

# make fleet [ARGS="--workers 8 --lines 64 --kill 3 --add 2"]: do workers share out lines as they are killed and come?
fleet: $(READY)
	$(BIN)/python -m tests.worker.faults.fleet $(ARGS)

# make failover [ARGS="--on cluster --workers 3 --lines 6"]: a master is killed under a fleet, and a replica takes over
failover: $(READY)
	$(BIN)/python -m tests.worker.faults.failover $(ARGS)

# make soak [ARGS="--minutes 60 --rate 40"]: does a worker's memory grow?
soak: $(READY)
	$(BIN)/python -m tests.worker.faults.soak $(ARGS)

# make bench [ARGS="coreset statistics ..."]; anomalib, one of the peers it compares with, is installed for it
bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks $(ARGS)

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo-report
